"""An endless search for bytes that a parser cannot bear; run by hand, it needs ``pip install atheris``.

    python tests/faults/fuzz_parsers.py jsonl -max_total_time=60

The parsers are jsonl, csv, tsv, text and parquet; all other words go to libFuzzer. A finding ends the run and leaves
its bytes in a file ``crash-...``.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["distilbeam.transforms.input.formats", "distilbeam.transforms.input.reading"]):
    import pyarrow as pa

    from distilbeam.transforms.errors import InputError
    from distilbeam.transforms.input.formats import delimited, jsonl
    from distilbeam.transforms.input.formats.base import Unreadable
    from distilbeam.transforms.input.formats.lines import BadLine, Block, parse, read_blocks
    from distilbeam.transforms.input.planning import plan_splits
    from distilbeam.transforms.input.read_settings import ReadSettings
    from distilbeam.transforms.input.reading import read_split
    from distilbeam.transforms.provenance import Provenance

_LIMIT = 1 << 12
_SCHEMA = pa.schema({"text": pa.string(), "n": pa.float64(), "o": pa.struct([("a", pa.list_(pa.int64()))])})


def _judged(block: Block) -> tuple[list[object], list[int]]:
    batches, _, rejects = parse(block, jsonl.parser(_SCHEMA), jsonl.diagnoser(_SCHEMA, "n"), include_text=True)
    return [row for batch in batches for row in batch.to_pylist()], [reject.row or 0 for reject in rejects]


def fuzz_jsonl(data: bytes) -> None:
    """Lines are judged alike together and alone, and inference bears them."""
    with contextlib.suppress(Unreadable):
        jsonl.infer(io.BytesIO(data), ["text"], _LIMIT)
    for block in read_blocks(io.BytesIO(data), max_line_bytes=_LIMIT, block_bytes=64):
        if isinstance(block, BadLine):
            continue
        block = jsonl.without_blank(block)
        rows, bad = _judged(block)
        alone = [_judged(block.slice(index, index + 1)) for index in range(len(block))]
        assert repr(rows) == repr([row for found, _ in alone for row in found])
        assert bad == [number for _, numbers in alone for number in numbers]
        assert len(rows) + len(bad) == len(block)


def fuzz_csv(data: bytes) -> None:
    """The size of the blocks makes no difference."""
    assert _records(data, 7) == _records(data, 1 << 20)


def _records(data: bytes, block_bytes: int) -> list[object]:
    found: list[object] = []
    try:
        for item in delimited.read_records(io.BytesIO(data), max_record_bytes=20, block_bytes=block_bytes):
            if isinstance(item, BadLine):
                found.append((item.number, item.length, item.error))
            else:
                found += [(int(item.numbers[index]), item.line(index)) for index in range(len(item))]
    except Unreadable:
        found.append((1 << 60, "Unreadable"))
    return sorted(found, key=lambda one: one[0])  # type: ignore[index]


def _file(extension: str) -> Callable[[bytes], None]:
    folder = tempfile.mkdtemp(prefix="fuzz-")
    path = Path(folder, "d" + extension)

    def fuzz(data: bytes) -> None:
        path.write_bytes(data)
        settings = ReadSettings(path=str(path), bad_files="reject", batch_rows=7, split_bytes=1 << 10)
        try:
            splits = plan_splits(settings)
        except InputError:
            return
        seen = 0
        for split in splits:
            for batch in read_split(split, settings):
                batch.validate(full=True)
                note = Provenance.of(batch)
                assert note is not None
                seen += batch.num_rows + len(note.rejects)
                if seen > 10_000:
                    return

    return fuzz


_TARGETS = {
    "jsonl": fuzz_jsonl,
    "csv": fuzz_csv,
    "tsv": _file(".tsv"),
    "text": _file(".txt"),
    "parquet": _file(".parquet"),
}

if __name__ == "__main__":
    name = sys.argv.pop(1)
    atheris.Setup([sys.argv[0], *sys.argv[1:]], _TARGETS[name])
    atheris.Fuzz()
