"""Rows that are kept of a damaged compressed file are rows that were written, whichever byte is wrong."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split

ROWS = 60_000
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lambda data: lzma.compress(data, preset=1),
    "zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def lines(rows: int = ROWS) -> bytes:
    return b"".join(b'{"id": %d, "text": "t", "a": %d}\n' % (n, n * 7919 % 1000003) for n in range(rows))


def kept(path: Path) -> list[tuple[int, int]]:
    settings = ReadSettings(str(path), bad_files="reject")
    batches = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    return [pair for batch in batches for pair in zip(batch["id"].to_pylist(), batch["a"].to_pylist(), strict=True)]


@pytest.mark.parametrize("share", [0.8, *(pytest.param(n, marks=pytest.mark.slow) for n in (0.5, 0.7, 7 / 9, 0.95))])
@pytest.mark.parametrize("extension", PACK)
def test_no_row_has_another_value_whichever_byte_is_wrong(extension: str, share: float, tmp_path: Path) -> None:
    packed = bytearray(PACK[extension](lines()))
    packed[int(len(packed) * share)] ^= 255
    sound, path = tmp_path / "sound.jsonl", tmp_path / f"a.jsonl.{extension}"
    sound.write_bytes(lines(3))  # so that there are columns whatever is left of the other
    path.write_bytes(packed)
    found = kept(tmp_path)[: -3 or None]
    assert found == [(n, n * 7919 % 1000003) for n in range(len(found))]


@pytest.mark.parametrize("extension", PACK)
def test_streams_before_the_damaged_one_are_kept_whole(extension: str, tmp_path: Path) -> None:
    data = lines(4000)
    cut = data.index(b"\n", len(data) // 2) + 1
    second = bytearray(PACK[extension](data[cut:]))
    second[len(second) * 2 // 3] ^= 255
    path = tmp_path / f"a.jsonl.{extension}"
    path.write_bytes(PACK[extension](data[:cut]) + second)
    assert len(kept(path)) >= data[:cut].count(b"\n")


@pytest.mark.parametrize("extension", ["gz", "xz", "zst"])
def test_overwritten_bytes_cost_little_more_than_what_they_hold(extension: str, tmp_path: Path) -> None:
    texts = [json.dumps({"id": n, "text": f"{n * 7919 % 1000003} {n * 104729 % 999983}", "a": n}) for n in range(ROWS)]
    packed = bytearray(PACK[extension]("\n".join(texts).encode()))
    middle = len(packed) // 2
    packed[middle : middle + 4000] = bytes(4000)
    path = tmp_path / f"a.jsonl.{extension}"
    path.write_bytes(packed)
    found = kept(path)
    assert found == [(n, n) for n in range(len(found))]
    assert len(found) > ROWS // 8


@pytest.mark.parametrize("extension", PACK)
def test_a_file_that_is_cut_off_gives_all_it_has(extension: str, tmp_path: Path) -> None:
    packed = PACK[extension](lines())
    path = tmp_path / f"a.jsonl.{extension}"
    path.write_bytes(packed[: len(packed) * 3 // 4])
    found = kept(path)
    assert found == [(n, n * 7919 % 1000003) for n in range(len(found))]
    assert len(found) > (0 if extension == "bz2" else ROWS // 2)
