"""Reads a whole input through the plan and checks, on the way, what every reader owes to the stages after it."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.input.splits import Split
from distilbeam.transforms.provenance import ROW, Provenance, Reject


@dataclass
class Reading:
    """Everything that was read, with rows and rejects at their true positions in the file."""

    splits: list[Split]
    batches: list[pa.RecordBatch] = field(default_factory=list)
    positions: list[tuple[str, int]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k != ROW} for batch in self.batches for row in batch.to_pylist()]

    @property
    def texts(self) -> list[str]:
        return [row["text"] for row in self.rows]

    @property
    def bad(self) -> list[tuple[int | None, str]]:
        return [(reject.row, reject.error) for reject in self.rejects]


def _read(path: str | Path | list[str], **settings: Any) -> Reading:
    wanted = ReadSettings(path=str(path) if isinstance(path, Path) else path, **settings)
    wanted = pickle.loads(pickle.dumps(wanted))
    found = Reading(plan_splits(wanted))
    lines_before: dict[str, int] = {}
    for ordinal, split in enumerate(found.splits):
        assert (split.ordinal, split.splits) == (ordinal, len(found.splits))
        batches = list(read_split(pickle.loads(pickle.dumps(split)), wanted))
        notes = [note for batch in batches if (note := Provenance.of(batch))]
        assert [note.sequence for note in notes] == list(range(len(batches)))
        assert [note.last for note in notes] == [False] * (len(batches) - 1) + [True]
        assert {note.split for note in notes} == {split.id}
        assert {note.reading for note in notes} == {wanted.digest}
        for number, part in enumerate(split.parts):
            own = [(batch, note) for batch, note in zip(batches, notes, strict=True) if note.part == number]
            assert own, "each part tells its totals in a batch"
            base = lines_before.get(part.source, 0) if own[0][1].relative else 0
            count = sum(batch.num_rows + len(note.rejects) for batch, note in own)
            assert own[-1][1].seen == count, "rows read = good rows + rejects"
            lines_before[part.source] = base + own[-1][1].lines
            for batch, note in own:
                assert note.source == part.source
                assert batch.num_rows <= wanted.batch_rows
                batch.validate(full=True)
                assert batch.schema.remove_metadata().equals(batches[0].schema.remove_metadata())
                found.positions += [(part.source, base + row) for row in batch[ROW].to_pylist()]
                found.rejects += [
                    Reject(**{**{n: getattr(r, n) for n in Reject.__slots__}, "row": base + r.row})
                    for r in note.rejects
                    if r.row is not None
                ]
        found.batches += batches
    return found


@pytest.fixture(scope="session")
def read() -> Callable[..., Reading]:
    """``read(path, **settings)`` gives rows, positions, rejects and splits."""
    return _read
