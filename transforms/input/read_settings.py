"""What to read and how, checked and brought into one form."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from distilbeam.transforms.checks import whole_number
from distilbeam.transforms.errors import InputError, SettingsError
from distilbeam.transforms.provenance import ROW
from distilbeam.transforms.storage.filesystems import check_url

from .column_types import settled_type
from .formats.base import is_text_type
from .formats.dialect import Dialect
from .formats.kinds import FORMATS
from .type_names import TypeNameError, parse_type

__all__ = ["ReadSettings", "column_names"]


@dataclass(frozen=True)  # without slots, so that the class itself holds the defaults
class ReadSettings:
    """What to read and how; ``ReadDocuments`` tells what each setting means.

    It takes what ``ReadDocuments`` takes, such as one name for a list of one, and holds it as the types below say.

    Raises:
        SettingsError: a setting is wrong.
    """

    path: tuple[str, ...]
    text: tuple[str, ...] = ("text",)
    keep: tuple[str, ...] | None = None
    format: str | None = None
    nulls: str = "reject"
    id: str | None = None
    separator: str = " "
    types: Mapping[str, pa.DataType] = field(default_factory=dict)
    split_bytes: int = 8 << 20
    batch_rows: int = 4096
    batch_bytes: int = 16 << 20
    max_line_bytes: int = 64 << 20
    decode_bytes: int = 512 << 20
    bad_files: str = "fail"
    rejects_include_text: bool = False
    columns: tuple[str, ...] | None = None
    csv_delimiter: str = ","
    csv_quote: str = '"'
    csv_escape: str = ""
    strict: bool = False
    limit: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", _paths(self.path))
        object.__setattr__(self, "text", column_names("text", self.text))
        object.__setattr__(
            self, "keep", None if self.keep is None else column_names("keep", self.keep, may_be_empty=True)
        )
        if not isinstance(self.types, Mapping | None):
            raise SettingsError(
                f"`types` must be a dict of the Arrow type of each column, such as {{'stars': 'int64'}}, not "
                f"{self.types!r:.80}"
            )
        object.__setattr__(self, "types", {name: _type(name, kind) for name, kind in (self.types or {}).items()})
        columns = self.columns.split(",") if isinstance(self.columns, str) else self.columns
        object.__setattr__(self, "columns", None if columns is None else column_names("columns", columns))
        _one_of("format", self.format, (None, *FORMATS))
        self._check_delimited()
        _one_of("nulls", self.nulls, ("reject", "keep"))
        _one_of("bad_files", self.bad_files, ("fail", "reject"))
        if not isinstance(self.strict, bool):
            raise SettingsError(f"`strict` must be True or False, not {self.strict!r:.80}")
        if not isinstance(self.separator, str):
            raise SettingsError(f"`separator` must be a text, not {self.separator!r}")
        if self.id is not None:
            column_names("id", self.id)
        for name, least, most in (
            ("split_bytes", 1, 1 << 40),
            ("batch_rows", 1, 1 << 20),
            ("batch_bytes", 1, 1 << 30),
            ("max_line_bytes", 1, 1 << 30),
            ("decode_bytes", 64 << 20, 1 << 40),
        ):
            whole_number(name, getattr(self, name), least, most)
        if self.limit is not None:
            whole_number("limit", self.limit, 1, 1 << 62)
        for name in self.text:
            if name in self.types and not is_text_type(self.types[name]):
                raise SettingsError(
                    f"`types` gives the text column {name!r} the type {self.types[name]}; leave it out, or "
                    "give it string"
                )

    @property
    def asked(self) -> tuple[str, ...] | None:
        """The columns to read, those to keep first; None for all."""
        if self.keep is None:
            return None
        return tuple(dict.fromkeys((*self.keep, *self.text, *([self.id] if self.id else []))))

    @property
    def dialect(self) -> Dialect:
        """The characters that have a meaning in CSV files."""
        return Dialect(self.csv_delimiter, self.csv_quote, self.csv_escape)

    @property
    def as_text(self) -> frozenset[str]:
        """The columns that are strings whatever a file has them as."""
        return frozenset(name for name, kind in self.types.items() if str(kind) in ("string", "large_string"))

    @property
    def transient(self) -> tuple[str, ...]:
        """The columns that are read but not kept."""
        kept = frozenset(self.keep or ())
        return tuple(name for name in self.asked or () if name not in kept)

    @property
    def digest(self) -> str:
        """Equal for settings that make equal rows of equal parts, so that a resumed job mixes no others in.

        How many rows make a batch changes none, so the defaults stand for any, as they did when they counted.
        """
        names = ("text", "keep", "nulls", "id", "separator", "batch_rows", "batch_bytes", "max_line_bytes")
        bounds = self if "_counts_batches" in vars(self) else ReadSettings
        holders = (bounds if name.startswith("batch_") else self for name in (*names, "rejects_include_text"))
        values = [getattr(holder, name) for holder, name in zip(holders, (*names, "rejects_include_text"), strict=True)]
        types = sorted((name, str(kind)) for name, kind in self.types.items())
        # Only where they are set, so that outputs made before there were such settings are still resumed.
        dialect = self.dialect
        csv = {} if dialect == Dialect() else vars(dialect)
        later = [{"columns": self.columns, **csv}] if self.columns or csv else []
        digest = hashlib.sha256(json.dumps([*values, types, *later]).encode()).hexdigest()
        return digest if self.limit is None else f"{digest}, the first {self.limit} rows"

    def check_format(self, url: str, format: str) -> None:
        """Raises InputError for a file of a format that settings given for CSV do not suit."""
        if self.columns and format not in ("csv", "tsv"):
            raise InputError(
                f"`columns` names the columns of CSV and TSV files without a header, but {url!r} is {format}, which "
                "names its own; leave `columns` out, or read such files in a run of their own"
            )
        if format == "tsv" and self.dialect != Dialect():
            raise InputError(
                f"`csv_delimiter`, `csv_quote` and `csv_escape` are for CSV; set `format='csv'` to read {url!r} so"
            )

    def _check_delimited(self) -> None:
        """Raises SettingsError for settings of CSV that are wrong, or that the format has no use for."""
        if self.dialect != Dialect() and self.format not in (None, "csv"):
            cure = "; set `format='csv'`" if self.format == "tsv" else ""
            raise SettingsError(
                f"`csv_delimiter`, `csv_quote` and `csv_escape` are for CSV, but `format` is {self.format!r}{cure}"
            )
        if self.columns and self.format not in (None, "csv", "tsv"):
            raise SettingsError(
                f"`columns` names the columns of CSV and TSV files without a header, but `format` is {self.format!r}; "
                "leave `columns` out"
            )

    def as_made_by(self, digest: str) -> ReadSettings:
        """These settings as they were counted when an output was written, if that has this digest; else as they are.

        Earlier versions counted what bounds a batch too.
        """
        former = copy.copy(self)
        object.__setattr__(former, "_counts_batches", True)
        return former if former.digest == digest else self


def _paths(value: Any) -> tuple[str, ...]:
    several = isinstance(value, Iterable) and not isinstance(value, str | bytes)
    paths = list(value) if several and not hasattr(value, "__fspath__") else [value]
    if not paths:
        raise SettingsError("the list of inputs is empty; give at least one file, glob or folder")
    return tuple(map(check_url, paths))


def column_names(setting: str, value: Any, may_be_empty: bool = False) -> tuple[str, ...]:
    """The columns that a setting names, one or several; raises SettingsError where it names none."""
    names: tuple[Any, ...] = (value,) if isinstance(value, str) or not isinstance(value, Iterable) else tuple(value)
    if not all(isinstance(name, str) and name for name in names) or not (names or may_be_empty):
        raise SettingsError(f"`{setting}` must be a column name or a list of them, not {value!r}")
    if ROW in names:
        raise SettingsError(f"`{setting}` names {ROW!r}, which is used for the position of a row; rename the column")
    if len(set(names)) < len(names):
        raise SettingsError(f"`{setting}` names a column twice: {', '.join(map(repr, names))}")
    return names


def _one_of(setting: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"`{setting}` must be one of {', '.join(map(repr, allowed))}, not {value!r}")


def _type(name: str, kind: str | pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.DataType):
        return settled_type(kind)
    try:
        return settled_type(parse_type(kind))
    except (TypeNameError, TypeError) as error:
        raise SettingsError(
            f"`types` gives column {name!r} the type {kind!r}, which Arrow does not know: {error}; for example double, "
            "int64, date32, timestamp[us, tz=UTC], decimal128(10, 2), list<string>, struct<a: int64>"
        ) from None
