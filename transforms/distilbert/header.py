"""The header of a safetensors file, and whether the file is still the one that was verified."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from distilbeam.transforms.errors import CheckpointError

from .files import instead_of, open_regular, plain, shown

__all__ = ["MAX_WEIGHTS_BYTES", "Tensors", "WeightsFile", "read_header"]

MAX_WEIGHTS_BYTES = 8 << 30
"""Thirty times a DistilBERT, so that a file of nothing but holes cannot keep a worker busy."""

# That of DistilBERT-base has 12 kB.
_MAX_HEADER = 4 << 20
_MAX_DIMENSIONS = 8
_DTYPE_BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1},
}

Tensors = dict[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape by name."""


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """A safetensors file as it was when it was found.

    Attributes:
        path: where it lies.
        state: device, inode, bytes and time of change in ns: what differs once the file is replaced or written to.
    """

    path: Path
    state: tuple[int, int, int, int]

    @classmethod
    def of(cls, path: Path) -> WeightsFile:
        """A file as it is now.

        Raises:
            CheckpointError: it is no regular file, or there are too many bytes of it.
        """
        with _open(path) as file:
            state = _state(file)
        if state[2] > MAX_WEIGHTS_BYTES:
            raise CheckpointError(
                f"{shown(path)} has {state[2]} bytes; a DistilBERT's weights have at most {MAX_WEIGHTS_BYTES}"
            )
        return cls(path, state)

    @property
    def files(self) -> tuple[WeightsFile, ...]:
        """The file itself, as ``ShardedWeights`` has several."""
        return (self,)

    @contextmanager
    def unchanged(self) -> Iterator[BinaryIO]:
        """The open file, held to be the one that was found before and after the block.

        Raises:
            CheckpointError: it is another.
        """
        with _open(self.path) as file:
            self._check(file)
            yield file
            with _open(self.path) as again:
                self._check(again)

    def sha256(self) -> str:
        """SHA-256 of the file.

        Raises:
            CheckpointError: it is no longer the one that was found.
        """
        digest = hashlib.sha256()
        with self.unchanged() as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
        return digest.hexdigest()

    def header(self) -> Tensors:
        """Dtype and shape of every tensor, as ``read_header``."""
        with self.unchanged() as file:
            return read_header(file, self.path)

    def _check(self, file: BinaryIO) -> None:
        if _state(file) != self.state:
            raise CheckpointError(
                f"{shown(self.path)} has changed since it was checked; let nothing write to a checkpoint in use, and "
                "start the job again"
            )


def read_header(file: BinaryIO, path: Path) -> Tensors:
    """Dtype and shape of every tensor, after checking that they fill the file, each with bytes of its own.

    Raises:
        CheckpointError: they do not, or there is no telling.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(512)
    if other := instead_of(start):
        raise CheckpointError(f"{shown(path)} {other}")
    file.seek(8)
    start = start[:8]
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= min(_MAX_HEADER, size - 8):
        raise CheckpointError(f"{shown(path)} is not a whole safetensors file; copy it again")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_unique)
        if not all(isinstance(value, str) for value in header.pop("__metadata__", {}).values()):
            raise TypeError
        entries = {
            name: (_text(entry["dtype"]), _sizes(entry["shape"]), _sizes(entry["data_offsets"]))
            for name, entry in header.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CheckpointError(f"{shown(path)} has a damaged safetensors header; copy it again") from None
    data = size - 8 - length
    end = 0
    for name, (dtype, shape, offsets) in sorted(entries.items(), key=lambda item: item[1][2]):
        if dtype not in _DTYPE_BYTES:
            raise CheckpointError(f"{shown(path)}: tensor {plain(name)} is of the unknown type {plain(dtype)}")
        count = _DTYPE_BYTES[dtype]
        for dimension in shape:
            count *= dimension
        if len(offsets) != 2 or offsets[0] != end or offsets[1] - offsets[0] != count:
            raise CheckpointError(
                f"{shown(path)}: tensor {plain(name)} does not fill the bytes its header gives it; copy the file again"
            )
        end = offsets[1]
    if end != data:
        raise CheckpointError(
            f"{shown(path)} has {data} bytes of tensors where its header promises {end}; copy it again"
        )
    return {name: (dtype, shape) for name, (dtype, shape, _) in entries.items()}


def _open(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except FileNotFoundError:
        raise CheckpointError(f"{shown(path)} is a link to nothing; copy the checkpoint again") from None


def _state(file: BinaryIO) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _sizes(values: Any) -> tuple[int, ...]:
    # Bounded, since the product of a million numbers is itself an attack.
    if not isinstance(values, list) or len(values) > _MAX_DIMENSIONS:
        raise TypeError
    if any(type(value) is not int or not 0 <= value < 1 << 63 for value in values):
        raise ValueError
    return tuple(values)
