"""Rows that could not be processed, and why.

A stage sets a row aside with ``Provenance.reject``; the rest of its batch goes on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import apache_beam as beam
import pyarrow as pa

from .discretion import discreet
from .errors import OutputError, RejectLimitError, SettingsError
from .provenance import Provenance

__all__ = [
    "REJECTS_SCHEMA",
    "RejectLimit",
    "RejectWatch",
    "Rejects",
    "parse_max_rejects",
    "rejects_table",
    "told_cause",
]

REJECTS_SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("row", pa.int64()),
        ("line", pa.int64()),
        ("id", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("reason", pa.string()),
        ("length", pa.int64()),
        ("text", pa.string()),
    ]
)
"""Columns of rejects: file, row in it (from 0; Parquet and CSV) or physical line (from 1; other formats), value of the
id column, stage, error class, reason, bytes of the text or line, and the text itself only where it was asked for."""


def rejects_table(provenance: Provenance) -> pa.Table:
    """The rejects that a batch brings, as a table of ``REJECTS_SCHEMA``.

    ``line`` counts from the start of the part where the provenance is ``relative``.
    """
    by_line = provenance.unit == "line"
    rows = [
        {
            "source": provenance.source,
            "row": None if by_line else reject.row,
            "line": reject.row if by_line else None,
            "id": reject.id,
            "stage": reject.stage,
            "error": reject.error,
            "reason": reject.reason,
            "length": reject.length,
            "text": reject.text,
        }
        for reject in provenance.rejects
    ]
    return pa.Table.from_pylist(rows, schema=REJECTS_SCHEMA)


_FIRST_ROWS = 990  # times the share of rows that must be good: a thousand at a limit of 1%
_DENSER = 4  # times as many rows in a byte as so far, at most, are expected of lines that nobody has read yet


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many rejects a job bears: a count, a fraction of the rows read, or any number where both are None."""

    count: int | None = None
    fraction: Fraction | None = None

    def exceeded(self, rejects: int, rows: int) -> bool:
        """Whether there are more rejects than allowed among the rows read, good and bad."""
        if self.fraction is not None:
            return rejects > self.fraction * rows
        return self.count is not None and rejects > self.count

    def hopeless(self, rejects: int, seen: int, most: float | None = None) -> bool:
        """Whether a job with so many rejects among the rows seen so far is sure, or as good as sure, to exceed it.

        Bad rows may come in clusters, so their share so far tells nothing: even if all rows to come are good, there
        must be too many. Only where each and every row was bad, a thousand of them, no more is waited for.

        Args:
            rejects: rows set aside so far.
            seen: rows so far, good and bad.
            most: rows that the whole job may have; None if nobody knows.
        """
        if self.fraction is None:
            return self.count is not None and rejects > self.count
        if most is not None and rejects > self.fraction * Fraction(max(most, seen)):
            return True
        # Each and every row so far, and of those the more the more may be bad.
        return rejects == seen and seen * (1 - self.fraction) >= _FIRST_ROWS

    def __str__(self) -> str:
        if self.fraction is not None:
            return f"{float(self.fraction * 100):g}%"
        return "any number" if self.count is None else str(self.count)


def parse_max_rejects(value: int | str | None) -> RejectLimit:
    """Reads a setting such as ``100``, ``"100"``, ``"1%"``, ``"none"`` or None.

    Raises:
        SettingsError: it is none of these.
    """
    text = "none" if value is None else str(value).strip().lower()
    try:
        if isinstance(value, (bool, float)):
            raise ValueError
        if text == "none":
            return RejectLimit()
        if text.endswith("%"):
            if "/" in text:
                raise ValueError
            fraction = Fraction(text[:-1].strip()) / 100
            if not 0 <= fraction <= 1:
                raise ValueError
            return RejectLimit(fraction=fraction)
        if not text.isdecimal():
            raise ValueError
        return RejectLimit(count=int(text))
    except (ValueError, ZeroDivisionError):
        raise SettingsError(
            f"`max_rejects` is {value!r}; give a number of rows such as 100, a percentage from '0%' to '100%', or "
            "'none' for no limit"
        ) from None


def told_cause(stage: str, error: str, count: int, reason: str) -> str:
    """What is told of the rejects of a stage and error: how many, and the reason of one of them.

    Example:
        >>> told_cause("text", "NullText", 3, "the text is null")
        'NullText in stage text (3): the text is null'
    """
    return f"{error} in stage {stage} ({count}): {' '.join(reason.split())}"


class RejectWatch:
    """Counts the rejects that one worker meets, so that a job that cannot succeed ends early.

    How many rows the whole job has is known of Parquet. Of lines their bytes are known; once this worker has come to
    the end of a split, all others are taken to have up to four times as many rows in a byte as those it has read.
    """

    def __init__(self, limit: RejectLimit) -> None:
        self._limit = limit
        self._read: dict[str, dict[int, int]] = {}  # rows of each part of splits that have not ended
        self._ended: dict[str, tuple[int, int]] = {}  # rows and bytes of splits of lines
        self._splits: dict[str, tuple[int, int]] = {}  # a split that is begun anew is counted anew
        self._rejects = self._seen = 0
        self._causes: dict[str, Counter[tuple[str, str]]] = {}  # of the splits with rejects
        self._reasons: dict[tuple[str, str], str] = {}  # an example for each cause

    def add(self, provenance: Provenance, rows: int) -> None:
        """Count a batch.

        Args:
            provenance: that of the batch.
            rows: good rows of the batch.

        Raises:
            RejectLimitError: the limit is exceeded, or as good as that.
        """
        if self._limit.count is None and self._limit.fraction is None:
            return
        rejects, seen = self._splits.get(provenance.split, (0, 0))
        if provenance.sequence == 0:
            self._rejects, self._seen = self._rejects - rejects, self._seen - seen
            rejects = seen = 0
            self._causes.pop(provenance.split, None)
        new = len(provenance.rejects)
        self._splits[provenance.split] = rejects + new, seen + new + rows
        self._rejects, self._seen = self._rejects + new, self._seen + new + rows
        if new:
            causes_of_split = self._causes.setdefault(provenance.split, Counter())
            causes_of_split.update((reject.stage, reject.error) for reject in provenance.rejects)
            for reject in provenance.rejects:
                self._reasons.setdefault((reject.stage, reject.error), reject.reason)
        # As the reader counts them, since a step in between may drop rows.
        self._read.setdefault(provenance.split, {})[provenance.part] = provenance.seen
        if provenance.last:
            read = sum(self._read.pop(provenance.split).values())
            if provenance.bytes:
                self._ended[provenance.split] = read, provenance.bytes
        if new and self._limit.hopeless(self._rejects, self._seen, self._most(provenance.total)):
            causes = sum(self._causes.values(), Counter[tuple[str, str]]()).most_common(3)
            frequent = "; ".join(told_cause(*cause, count, self._reasons[cause]) for cause, count in causes)
            raise RejectLimitError(
                f"{self._rejects} of the first {self._seen} rows were set aside, more than the {self._limit} that "
                f"`max_rejects` will allow, so the job was ended early; nothing was committed. Most frequent: "
                f"{frequent}. The last was in {provenance.source!r}; repair the input, correct the settings, or raise "
                "`max_rejects` and run again with `if_exists='resume'`, which keeps the finished work"
            )

    def _most(self, total: tuple[int, int] | None) -> float | None:
        """Rows that the whole job may have; None if that cannot be told yet."""
        if total is None:
            return None
        known, size = total
        rows, read = (sum(numbers) for numbers in zip(*self._ended.values(), strict=True)) if self._ended else (0, 0)
        if size > read and not read:
            return None
        return known + rows + (max(size - read, 0) * _DENSER * rows / read if read else 0)


class _CollectRejects(beam.DoFn):
    @discreet
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        provenance = Provenance.of(batch)
        if provenance is None:
            raise OutputError("a batch without provenance reached Rejects; read the input with ReadDocuments")
        if not provenance.rejects:
            return
        table = rejects_table(provenance)
        if provenance.relative:
            # Only the commit of a whole job knows how many lines come before; no number is better than a wrong one.
            unknown = pa.nulls(table.num_rows, pa.int64())
            table = table.set_column(table.schema.get_field_index("line"), "line", unknown)
        yield from table.combine_chunks().to_batches()


@dataclass
class Rejects(beam.PTransform):
    """Record batches -> record batches of ``REJECTS_SCHEMA``, for those who handle rejects themselves.

    ``line`` is null where a large file was read in byte ranges; ``WriteFeatures`` fills it in.
    """

    def expand(self, batches: beam.PCollection[pa.RecordBatch]) -> beam.PCollection[pa.RecordBatch]:
        return batches | "Collect rejects" >> beam.ParDo(_CollectRejects()).with_output_types(pa.RecordBatch)
