"""Delimiter, quote and escape of CSV files."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow.csv

from distilbeam.transforms.errors import SettingsError

__all__ = ["Dialect"]


@dataclass(frozen=True)
class Dialect:
    r"""The characters that have a meaning in a CSV file, in the manner of Python's ``csv`` and of ``pyarrow.csv``.

    A quoted field begins and ends with the quote; two quotes inside of it are one. What follows the escape is text,
    inside of quotes and outside.

    Attributes:
        delimiter: between two fields; ``\t`` may also be written as a backslash and a t.
        quote: around fields with delimiters, line ends or quotes; empty if quotes are text.
        escape: before a character that is text; empty for none.

    Raises:
        SettingsError: one is not an ASCII character, or two are the same.

    Example:
        >>> Dialect(delimiter=";").fields("a;b")
        ['a', 'b']
    """

    delimiter: str = ","
    quote: str = '"'
    escape: str = ""

    def __post_init__(self) -> None:
        if self.delimiter == "\\t":
            object.__setattr__(self, "delimiter", "\t")
        given = {"csv_delimiter": self.delimiter, "csv_quote": self.quote, "csv_escape": self.escape}
        for name, value in given.items():
            may_be_empty = name != "csv_delimiter"
            if value == "" and may_be_empty:
                continue
            if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in "\r\n\0":
                allowed = "one ASCII character other than a line end" + (", or empty" if may_be_empty else "")
                raise SettingsError(f"`{name}` must be {allowed}, not {value!r}")
        names = list(given)
        for one in names:
            for other in names[names.index(one) + 1 :]:
                if given[one] and given[one] == given[other]:
                    cure = "; leave `csv_escape` out, doubled quotes are read anyway" if one == "csv_quote" else ""
                    raise SettingsError(f"`{one}` and `{other}` are both {given[one]!r}, but must differ{cure}")

    @property
    def special(self) -> bytes:
        """Quote and escape."""
        return (self.quote + self.escape).encode()

    @property
    def parse_options(self) -> pyarrow.csv.ParseOptions:
        """The dialect for Arrow."""
        return pyarrow.csv.ParseOptions(
            delimiter=self.delimiter,
            quote_char=self.quote or False,
            escape_char=self.escape or False,
            newlines_in_values=True,
        )

    @cached_property
    def tokens(self) -> re.Pattern[bytes]:
        """An escaped character, a quoted field with what comes before it, or the end of a record.

        A quote elsewhere is text. Group 1 is what ends the quoted field, nothing at the end of the data.
        """
        if not self.quote:
            return re.compile(rb"%s[\s\S]|\n" % re.escape(self.escape.encode()))
        delimiter, quote, escape = (re.escape(part.encode()) for part in (self.delimiter, self.quote, self.escape))
        inner = rb"[^%s%s]*" % (quote, escape)
        pairs = rb"%s%s" % (quote, quote) + (rb"|%s[\s\S]" % escape if escape else b"")
        end = rb"%s|%s\Z" % (quote, rb"(?:%s)?" % escape if escape else b"")
        field = rb"(?:\A|[%s\r\n])%s%s(?:(?:%s)%s)*(%s)" % (delimiter, quote, inner, pairs, inner, end)
        return re.compile((rb"%s[\s\S]|" % escape if escape else b"") + field + rb"|\n")

    def fields(self, record: str) -> list[str]:
        """The fields of one record.

        Raises:
            csv.Error: it is none, or a field is very long.
        """
        options: dict[str, Any] = {"delimiter": self.delimiter, "escapechar": self.escape or None}
        options |= {"quotechar": self.quote} if self.quote else {"quoting": csv.QUOTE_NONE}
        return next(csv.reader(io.StringIO(record, newline=""), **options), [])
