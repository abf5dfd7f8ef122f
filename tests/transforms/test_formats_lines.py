"""Lines of byte ranges, against plain Python splitting at every cut."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distilbeam.transforms.input.formats.lines import BadLine, Block, parse, read_blocks

NASTY = {
    "plain": b"one\ntwo\nthree\n",
    "no final newline": b"one\ntwo",
    "windows": b"one\r\n\r\ntwo\r\nthree\r",
    "mark": b"\xef\xbb\xbfone\ntwo\n",
    "mark alone": b"\xef\xbb\xbf",
    "blank lines": b"\n\n\na\n\n",
    "long": b"a" * 40 + b"\nb\n" + b"c" * 40,
    "other separators": "a\u2028b\x85c\x0bd\x0ce\x1cf\rg\n".encode(),
    "empty": b"",
    "one newline": b"\n",
    "nul": b"a\x00b\n\x00\n",
}


def split_lines(data: bytes) -> list[bytes]:
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return [line.removesuffix(b"\r") for line in (lines if lines[-1] else lines[:-1])]


def lines_of(data: bytes, start: int, stop: int | None, limit: int, block_bytes: int) -> list[tuple[int, bytes | int]]:
    found: list[tuple[int, bytes | int]] = []
    for block in read_blocks(io.BytesIO(data), start, stop, max_line_bytes=limit, block_bytes=block_bytes):
        if isinstance(block, BadLine):
            found.append((block.number, block.length))
        else:
            found += [(int(number), block.line(index)) for index, number in enumerate(block.numbers)]
    return sorted(found)


def in_ranges(data: bytes, size: int, limit: int = 1 << 20, block_bytes: int = 7) -> list[bytes | int]:
    """All lines, read in ranges of a size and numbered through."""
    found: list[bytes | int] = []
    for start in range(0, max(len(data), 1), size):
        stop = start + size if start + size < len(data) else None
        lines = lines_of(data, start, stop, limit, block_bytes)
        assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
        found += [line for _, line in lines]
    return found


@pytest.mark.parametrize("name", NASTY)
def test_every_range_size_gives_every_line_once(name: str) -> None:
    data = NASTY[name]
    for size in range(1, len(data) + 2):
        for block_bytes in (1, 2, 3, 7, 1000):
            assert in_ranges(data, size, block_bytes=block_bytes) == split_lines(data), (size, block_bytes)


@pytest.mark.parametrize("limit", [1, 2, 5])
@pytest.mark.parametrize("name", NASTY)
def test_long_lines_are_measured_and_passed_over(name: str, limit: int) -> None:
    data = NASTY[name]
    expected = [line if len(line) <= limit else len(line) for line in split_lines(data)]
    for size in (1, 2, 3, 5, 11, 1000):
        for block_bytes in (1, 4, 1000):
            found = in_ranges(data, size, limit, block_bytes)
            # Of a line that was never held, a carriage return at its end counts as one of its bytes.
            assert len(found) == len(expected)
            for ours, theirs in zip(found, expected, strict=True):
                assert ours == theirs or (isinstance(ours, int) and isinstance(theirs, int) and ours == theirs + 1)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([b"a", b"bb", b"\n", b"\r\n", b"\r", "é".encode(), b"\xef\xbb\xbf", b""]), max_size=30),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_any_bytes_at_any_cut(pieces: list[bytes], size: int, block_bytes: int) -> None:
    data = b"".join(pieces)
    assert in_ranges(data, size, block_bytes=block_bytes) == split_lines(data)


class Counting(io.BytesIO):
    largest = 0
    total = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.largest = max(self.largest, len(data))
        self.total += len(data)
        return data


def test_a_range_reads_little_more_than_itself() -> None:
    stream = Counting(b"0123456789" * 9 + b"\n" * 10 + b"x" * (1 << 20))
    blocks = list(read_blocks(stream, 10, 20, max_line_bytes=1 << 20))
    assert not blocks
    assert stream.total <= 11
    stream = Counting(b"a\n" * (1 << 20))
    assert sum(len(b) for b in read_blocks(stream, 1000, 2000, max_line_bytes=100) if not isinstance(b, BadLine)) == 500
    assert stream.total < 70_000


def test_a_huge_line_is_not_held(tmp_path: Path) -> None:
    import tracemalloc

    class Endless(io.RawIOBase):
        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            size = min(size, self.left)
            self.left -= size
            return b"x" * size if self.left else b"x" * max(size - 3, 0) + b"\nok"[: size or 0]

    tracemalloc.start()
    blocks = list(read_blocks(Endless(), max_line_bytes=1 << 20))  # type: ignore[arg-type]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(blocks[0], BadLine)
    assert blocks[0].length == (64 << 20) - 3
    assert not isinstance(blocks[1], BadLine)
    assert blocks[1].line(0) == b"ok"
    assert peak < 24 << 20


@pytest.mark.parametrize("bad", [lambda n: True, lambda n: n % 2, lambda n: n % 100 == 7, lambda n: n == 999])
def test_bad_lines_are_found_in_few_attempts(bad: Any) -> None:
    lines = [b"bad" if bad(n) else b"good %d" % n for n in range(1000)]
    (block,) = read_blocks(io.BytesIO(b"\n".join(lines) + b"\n"), max_line_bytes=100)
    assert isinstance(block, Block)
    attempts = []

    def parser(part: Block) -> pa.RecordBatch:
        attempts.append(len(part))
        if b"bad" in part.data:
            raise pa.ArrowInvalid("bad")
        return pa.record_batch({"line": part.strings()})

    batches, numbers, rejects = parse(
        block, parser, lambda line, thorough: ("Bad", "it is bad", None) if thorough else None, include_text=False
    )
    good = [n for n in range(1000) if not bad(n)]
    assert [line for batch in batches for line in batch["line"].to_pylist()] == [f"good {n}" for n in good]
    assert numbers.tolist() == [n + 1 for n in good]
    assert [reject.row for reject in rejects] == [n + 1 for n in range(1000) if bad(n)]
    assert len(attempts) < min(1300, 30 * len(rejects) + 1)


@pytest.mark.parametrize("name", ["jsonl", "tsv", "txt"])
def test_true_line_numbers_at_every_split_size(tmp_path: Path, read: Any, name: str) -> None:
    texts = ["a", "bb", "ü", "", "x" * 30, "end"]
    if name == "jsonl":
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        lines[2:2] = ["{bad", "", "  "]
        good, bad = [1, 2, 6, 7, 8, 9], [3]
    elif name == "tsv":
        lines = ["n\ttext", *(f"{n}\t{text}" for n, text in enumerate(texts))]
        lines[3:3] = ["bad", "", "b\ta\td"]
        good, bad = [2, 3, 7, 8, 9, 10], [4, 6]
    else:
        lines, good, bad = texts, [1, 2, 3, 4, 5, 6], []
    path = tmp_path / f"d.{name}"
    path.write_bytes("\r\n".join(lines).encode())
    for size in range(1, path.stat().st_size + 1, 1 if name == "txt" else 4):
        found = read(path, split_bytes=size)
        assert found.texts == texts
        assert [position for _, position in found.positions] == good
        assert [reject.row for reject in found.rejects] == bad
