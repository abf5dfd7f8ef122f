"""Where the rows of a record batch come from, carried in the schema metadata of the batch itself.

Every stage passes the metadata on (Arrow keeps it through ``append_column``, ``filter`` and ``slice``), so that each
row can be named, each split can be counted out (rows read = rows written + rejects) and nothing has to travel beside
the batches.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from typing import Any

import pyarrow as pa

__all__ = ["MAX_DEATHS", "REJECT_CHARACTERS", "REJECT_ID_CHARACTERS", "ROW", "Provenance", "Reject", "show_value"]

ROW = "_row"
"""Name of the int64 column with each row's position in its source; never written to the output."""

MAX_DEATHS = 2
"""So often a split may have died with its process before its rows are suspected and computed in one of their own. Once
is no sign: workers are preempted and scaled in. Runners that try four times, as Dataflow does, still come to an end."""

REJECT_CHARACTERS = 10_000
"""Characters of a text that a reject holds at most."""

REJECT_ID_CHARACTERS = 200
"""Characters of an id that a reject holds at most; an id may be a text."""

_KEY = b"distilbeam.provenance"
_MAX_NESTED_BYTES = 1 << 16  # a larger nested value is shown in part, since as Python objects it takes 50 times as much


@dataclass(frozen=True, slots=True)
class Reject:
    """One row set aside.

    Attributes:
        stage: ``read``, ``text``, ``tokenize``, ``model``, ``worker`` (the row ends or stalls it) or ``write``.
        error: error class, such as ``JSONDecodeError``.
        reason: one sentence without any text of the document.
        row: position of the row, counted as ``ROW`` is; None where it is unknown.
        id: value of the id column as text, if there is one.
        length: length of the offending text or line in bytes, if known.
        text: the text itself, only where the user asked for it.
    """

    stage: str
    error: str
    reason: str
    row: int | None = None
    id: str | None = None
    length: int | None = None
    text: str | None = None

    @classmethod
    def of(
        cls,
        stage: str,
        error: str,
        reason: str,
        *,
        row: int | None = None,
        id: object = None,
        length: int | None = None,
        text: str | bytes | memoryview | pa.Buffer | None = None,
    ) -> Reject:
        """A reject that can be written whatever the row holds: the one way to make one, so that none costs the job.

        ``Reject.of("text", "NullText", "the text is null", row=3, id=batch["when"][3])``

        Args:
            stage: as ``stage``.
            error: as ``error``.
            reason: as ``reason``.
            row: as ``row``.
            id: value of the id column, of Arrow or of Python.
            length: as ``length``.
            text: the text, or its bytes, of which the beginning is kept; None unless the user asked for it.
        """
        if text is not None and not isinstance(text, str):
            text = bytes(memoryview(text)[: 4 * REJECT_CHARACTERS]).decode(errors="backslashreplace")
        shown = None if id is None else _fit(show_value(id), REJECT_ID_CHARACTERS)
        return cls(stage, error, reason, row, shown, length, _fit(text, REJECT_CHARACTERS))


_REJECT = tuple(field.name for field in fields(Reject))


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of a record batch besides its columns.

    Attributes:
        source: path or URL of the file.
        size: bytes of the file when the plan was made.
        version: what changes when the file does, as ``Part.version``.
        start: first byte or row of the part, as ``Part.start``.
        stop: end of the part, as ``Part.stop``.
        attempt: how often work on the split was begun and not ended, this time included; above 1 an earlier attempt
            has died with its process (one that failed with an error has ended), above ``MAX_DEATHS`` a row may be why.
        split: id of the split, equal for equal input and reading settings.
        ordinal: position of the split in the plan, from 0.
        splits: number of splits in the plan.
        reading: digest of the settings the split is read with (``Split.reading``), so that an output made with other
            ones can be told.
        part: position of the part (a range of one file) inside the split.
        sequence: position of the batch inside the split, from 0.
        last: whether this is the split's last batch. Every split has one, with zero rows if need be.
        seen: rows read so far from this part, good and bad, so the last batch of a part tells its total.
        lines: physical lines, or rows where ``unit`` is ``row``, read so far from this part; blank lines count.
        lost: rows that a damage of the file has taken beside the rejects, about; None where nobody knows.
        unit: what ``ROW`` counts: ``row`` (records from 0) or ``line`` (physical lines from 1).
        relative: whether ``ROW`` counts from the start of the part, because the file's rows before it are unknown.
        finished: the split needs no work, since the output already has it; the batch has no rows.
        record: ``Split.record`` of a finished split.
        schema: ``Split.schema`` in base64, in the last batch of a split alone.
        base: ``Split.base``, in the last batch of a split alone.
        bytes: ``Split.size``, in the last batch of a split alone, where the rows of the split were not known before.
        total: ``Split.total``.
        dtypes: ``Split.dtypes``.
        text: the text columns, joined in this order.
        separator: what joins several text columns.
        null_texts: whether a row may lack a text in ``text``, so that its features are null.
        id: the id column, if any.
        transient: columns that are read for the model and not written.
        rejects: rows of the split set aside since the previous batch.
        rejects_include_text: whether rejects are to hold the text, as only the user may ask.
        unread: keys of JSON objects that no column takes, in the last batch of a split alone.
        models: identity of the checkpoint and settings of the features, for each stage with a model, in order.
        rows: rows that the batch had when the last of our stages let it go; None if none has noted it.
        dropped: rows of this batch that steps of the user's between our stages have taken out.
        added: rows of this batch that they have put in.
    """

    source: str
    split: str
    ordinal: int = 0
    splits: int = 1
    size: int = 0
    version: str = ""
    start: int = 0
    stop: int | None = None
    attempt: int = 1
    reading: str = ""
    part: int = 0
    sequence: int = 0
    last: bool = False
    seen: int = 0
    lines: int = 0
    lost: int | None = 0
    unit: str = "row"
    relative: bool = False
    finished: bool = False
    record: str = ""
    schema: str = ""
    base: tuple[int, int] | None = None
    bytes: int = 0
    total: tuple[int, int] | None = None
    dtypes: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    separator: str = " "
    null_texts: bool = True
    id: str | None = None
    transient: tuple[str, ...] = ()
    rejects: tuple[Reject, ...] = ()
    rejects_include_text: bool = False
    unread: tuple[str, ...] = ()
    models: tuple[dict[str, Any], ...] = ()
    rows: int | None = None
    dropped: int = 0
    added: int = 0

    @classmethod
    def of(cls, batch: pa.RecordBatch) -> Provenance | None:
        """The provenance of a batch, or None if it has none."""
        encoded = (batch.schema.metadata or {}).get(_KEY)
        if encoded is None:
            return None
        values = json.loads(encoded)
        for name in ("text", "transient", "unread", "models", "dtypes"):
            values[name] = tuple(values[name])
        for name in ("base", "total"):
            values[name] = values[name] and tuple(values[name])
        values["rejects"] = tuple(Reject(**reject) for reject in values["rejects"])
        return cls(**values)

    def attach(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with this provenance in place of its own."""
        metadata = dict(batch.schema.metadata or {})
        # Not by asdict, which copies every reject deeply.
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["rejects"] = [{name: getattr(reject, name) for name in _REJECT} for reject in self.rejects]
        metadata[_KEY] = json.dumps(values, separators=(",", ":")).encode()
        return batch.replace_schema_metadata(metadata)

    def reject(self, *rejects: Reject) -> Provenance:
        """This provenance with more rejects."""
        return replace(self, rejects=self.rejects + rejects)

    def counted(self, rows: int) -> Provenance:
        """This provenance of a batch that has come with so many rows: what it lacks or has more was the user's doing.

        Each of our stages counts so what it is given, and notes in ``rows`` what it should give on by its own account,
        so that a row that a stage of ours loses is never taken for one that the user has dropped.
        """
        if self.rows is None or rows == self.rows:
            return self
        change = rows - self.rows
        return replace(self, rows=rows, dropped=self.dropped + max(0, -change), added=self.added + max(0, change))

    @staticmethod
    def strip(schema: pa.Schema) -> pa.Schema:
        """The schema without provenance; the user's own metadata stays."""
        metadata = {key: value for key, value in (schema.metadata or {}).items() if key != _KEY}
        return schema.with_metadata(metadata or None)


def show_value(value: object) -> str | None:
    """A value as a person may read it, whatever it is; None where it is null.

    Python has no year 10,000 and no text that is not UTF-8, and a nested value may be huge: such a value is shown as
    Arrow prints it.

    Args:
        value: a scalar of Arrow, or a value of Python.
    """
    if value is None or (isinstance(value, pa.Scalar) and not value.is_valid):
        return None
    try:
        plain = value
        if isinstance(value, pa.Scalar):
            if pa.types.is_nested(value.type) and pa.repeat(value, 1).nbytes > _MAX_NESTED_BYTES:
                return _printed(value)
            plain = value.as_py()
        return plain.decode(errors="backslashreplace") if isinstance(plain, bytes) else str(plain)
    except Exception:  # a time beyond Python's, for one
        return _printed(value) if isinstance(value, pa.Scalar) else f"<{type(value).__name__}>"


def _printed(value: pa.Scalar) -> str:
    """A scalar as Arrow prints it."""
    try:
        if isinstance(value, pa.DictionaryScalar):
            value = value.value
        text: str = pa.repeat(value, 1).to_string(skip_new_lines=True, window=3)
    except Exception:
        return f"<{value.type}>"
    return text.removeprefix("[").removesuffix("]")


def _fit(text: str | None, characters: int) -> str | None:
    """The beginning of a text, which Arrow can hold: half of a surrogate pair is escaped."""
    if text is None:
        return None
    return text[:characters].encode(errors="backslashreplace").decode()[:characters]
