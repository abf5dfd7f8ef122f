"""A job's plan, without doing anything: which files, which columns, how much work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.featurization import FeatureSpec, refuse_taken, without_rows
from distilbeam.transforms.input.discovery import discover
from distilbeam.transforms.input.limits import plan_splits
from distilbeam.transforms.input.planning import read_schema
from distilbeam.transforms.input.reading import transient_columns
from distilbeam.transforms.output.increments import files_of
from distilbeam.transforms.output.ledger import Ledger
from distilbeam.transforms.output.manifest import SplitRecord

__all__ = ["Preview", "preview"]


@dataclass(frozen=True, slots=True)
class Preview:
    """What a job would read and write.

    Attributes:
        output: the folder that it would write.
        files: path or URL and bytes of each file that it would read, in order.
        formats: number of files by format.
        passed_over: files that were found and are no data.
        splits: units of work.
        limit: rows that it would read at most.
        columns: (name, type) of the columns of the input that would be kept.
        features: (name, type) of the columns that would be added.
        transient: columns that would be read and not kept.
        known: how many of the files are in the output, or in that of ``since``, as they are; None if the job does not
            go on from one.
    """

    output: str
    files: tuple[tuple[str, int], ...]
    formats: dict[str, int]
    passed_over: tuple[str, ...]
    splits: int
    limit: int | None
    columns: tuple[tuple[str, str], ...]
    features: tuple[tuple[str, str], ...]
    transient: tuple[str, ...] = ()
    known: int | None = None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)

    def __str__(self) -> str:
        from .display import plain, show_preview

        return plain(partial(show_preview, self))

    def _repr_html_(self) -> str:
        from .html import html_of_preview

        return html_of_preview(self)


def preview(
    documents: ReadDocuments,
    spec: FeatureSpec,
    output: str,
    *,
    dimensions: int | None = None,
    labels: Sequence[str] = (),
    records: Sequence[SplitRecord] | None = None,
    ledger: Ledger | None = None,
) -> Preview:
    """The plan of a job. Nothing is written, and of the files no more is read than a plan needs.

    Args:
        documents: the input.
        spec: what would be computed.
        output: the folder that would be written.
        dimensions: length of the model's vectors, if it is known.
        labels: names of the model's classes.
        records: what the outputs hold that the job would go on from; None if it would not.
        ledger: the outputs that the job would go on from; None if they are not to be looked at.

    Raises:
        InputError: as ``planning.plan_splits``.
        SettingsError: as ``featurization.refuse_taken``.
        OutputExistsError: as ``Ledger.check``.
    """
    settings = documents.settings
    _, passed = discover(settings.path, settings.format)
    # A job that recurs has no split of two files, so that a changed one concerns no other.
    splits = plan_splits(settings, apart=records is not None)
    parts = {part.source: part for split in splits for part in split.parts}
    schema = read_schema(splits[0])
    refuse_taken(schema.names, spec)
    if ledger is not None:
        ledger.check(settings)
    transient = transient_columns(settings, splits[0])
    schema = pa.schema([field for field in schema if field.name not in transient])
    before = files_of(records) if records is not None else {}
    return Preview(
        output=output,
        files=tuple((part.source, part.size) for part in parts.values()),
        formats=dict(Counter(part.format for part in parts.values())),
        passed_over=tuple(passed),
        splits=len(splits),
        limit=settings.limit,
        columns=tuple((field.name, str(field.type)) for field in schema),
        features=_features(spec, dimensions, labels),
        transient=tuple(transient),
        known=None
        if records is None
        else sum(before.get(part.source) == (part.size, part.version) for part in parts.values()),
    )


def _features(spec: FeatureSpec, dimensions: int | None, labels: Sequence[str]) -> tuple[tuple[str, str], ...]:
    known = replace(spec, dimensions=spec.dimensions or dimensions)
    empty = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
    fields = {name: str(field.type) for name, field in zip(spec.names, without_rows(empty, known).schema, strict=True)}
    if "embedding" in fields and spec.embedding_dtype == "float16":
        fields["embedding"] = fields["embedding"].replace("float", "halffloat")
    if "scores" in fields and labels:
        fields["scores"] = f"struct of {len(labels)} floats"
    return tuple((spec.prefix + name, kind) for name, kind in fields.items())
