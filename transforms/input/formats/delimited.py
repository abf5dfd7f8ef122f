"""CSV with quotes (RFC 4180) and TSV without (IANA text/tab-separated-values), with or without a header."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.fitting import fitted

from .base import MAX_COLUMNS, Unreadable
from .dialect import Dialect
from .lines import BLOCK_BYTES, BadLine, Block, Diagnosis, Positions, read_line

__all__ = ["columns_of", "csv_parser", "diagnoser", "parser", "read_header", "read_records", "tsv_parser"]

_BOM = b"\xef\xbb\xbf"
_CSV = Dialect()


def read_header(stream: BinaryIO, format: str, limit: int, dialect: Dialect = _CSV) -> list[str]:
    """The column names in the first line or record of a file.

    Raises:
        Unreadable: there is no header, it is too long or not UTF-8, or a name occurs twice.
    """
    text, names = _first_fields(stream, format, limit, dialect)
    if not text.strip():
        raise Unreadable("it has no header; the first line must name the columns, or `columns` must")
    if "\r" in text and not (dialect.quote and dialect.quote in text):
        raise Unreadable(r"its lines end with \r alone; convert them to \n")
    if len(names) > MAX_COLUMNS:
        raise Unreadable(f"its header names {len(names)} columns, more than {MAX_COLUMNS}")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        # By their places, since without a header the names are those of a document.
        places = [place for place, name in enumerate(names, 1) if name == twice[0]]
        raise Unreadable(
            f"its columns {', '.join(map(str, places))} have the same name; rename all but one of them, or name the "
            "columns with `columns` if the file has no header"
        )
    return names


def columns_of(
    url: str, stream: BinaryIO, format: str, limit: int, columns: Sequence[str] | None, dialect: Dialect = _CSV
) -> Sequence[str]:
    """The names of the columns of a file: those in its first line, or those that are given since it has no header.

    Raises:
        InputError: the first line has not one field for each of the names that are given, or is itself a header.
        Unreadable: as ``read_header``.
    """
    if columns is None:
        return read_header(stream, format, limit, dialect)
    text, fields = _first_fields(stream, format, limit, dialect)
    if fields == list(columns):
        raise InputError(
            f"the first line of {url!r} is a header with the names that `columns` gives; leave `columns` out"
        )
    if text and len(fields) != len(columns):
        raise InputError(
            f"the first line of {url!r} has {len(fields)} fields, but `columns` names {len(columns)} columns; name all "
            "columns of the file"
        )
    return columns


def parser(
    schema: pa.Schema, header: Sequence[str], format: str, dialect: Dialect = _CSV
) -> Callable[[Block], pa.RecordBatch]:
    """What turns lines or records into rows."""
    return tsv_parser(schema, header) if format == "tsv" else csv_parser(schema, header, dialect)


def _first_fields(stream: BinaryIO, format: str, limit: int, dialect: Dialect) -> tuple[str, list[str]]:
    """The first line or record as it is, and its fields."""
    first = read_line(stream, limit + 1) if format == "tsv" else _first_record(stream, limit, dialect)
    if len(first) > limit:
        raise Unreadable("its header cannot be read: the line is longer than `max_line_bytes` allows")
    try:
        text = first.decode()
        return text, text.split("\t") if format == "tsv" else dialect.fields(text)
    except UnicodeDecodeError:
        raise Unreadable("its header is not UTF-8") from None
    except csv.Error:
        raise Unreadable(
            f"its header has a name of more than {csv.field_size_limit()} characters, or is not CSV; the first line "
            "must name the columns, or `columns` must"
        ) from None


def _first_record(stream: BinaryIO, limit: int, dialect: Dialect) -> bytes:
    for found in read_records(stream, max_record_bytes=limit, block_bytes=64 << 10, dialect=dialect):
        if isinstance(found, Block) and found.numbers[0] == -1:
            return found.line(0)
        if isinstance(found, BadLine) and found.number == -1:  # long rows of the same block come before it
            raise Unreadable(f"its header cannot be read: {found.reason}")
    return b""


def csv_parser(schema: pa.Schema, header: Sequence[str], dialect: Dialect = _CSV) -> Callable[[Block], pa.RecordBatch]:
    """What turns records into rows; an empty field is an empty string, or null in a column of another type."""
    wanted, places = _places(schema, header)
    positions = list(map(str, places))

    def read(block: Block) -> pa.RecordBatch:
        table = pa.csv.read_csv(
            pa.BufferReader(block.data),
            read_options=pa.csv.ReadOptions(
                use_threads=False, block_size=len(block.data) + 1, column_names=[str(n) for n in range(len(header))]
            ),
            parse_options=dialect.parse_options,
            convert_options=pa.csv.ConvertOptions(
                include_columns=positions,
                column_types=dict.fromkeys(positions, pa.string()),
                strings_can_be_null=False,
                check_utf8=False,
            ),
        )
        columns = [column.combine_chunks() for column in table.columns] if wanted else []
        return _typed(columns, wanted, table.num_rows)

    return read


def tsv_parser(schema: pa.Schema, header: Sequence[str]) -> Callable[[Block], pa.RecordBatch]:
    """What turns lines into rows; fields are what lies between tabs, as it is."""
    wanted, places = _places(schema, header)

    def read(block: Block) -> pa.RecordBatch:
        lines = block.strings()
        if not pc.all(pc.equal(pc.count_substring(lines, "\t"), len(header) - 1), min_count=0).as_py():
            raise pa.ArrowInvalid("a line has another number of fields than the header")
        fields = pc.split_pattern(lines, "\t").flatten() if len(header) > 1 else lines
        positions = [np.arange(place, len(fields), len(header)) for place in places]
        return _typed([fields.take(pa.array(indices)) for indices in positions], wanted, len(lines))

    return read


def diagnoser(schema: pa.Schema, header: Sequence[str], format: str, dialect: Dialect = _CSV) -> Diagnosis:
    """What names error class and reason of a record that the parser refuses."""
    odd = b"\r" if format == "tsv" else b"\r" + dialect.special

    def diagnose(line: bytes, thorough: bool) -> tuple[str, str, str | None] | None:
        if not thorough and any(code in line for code in odd):
            return None
        text = line.decode(errors="replace")
        try:
            fields = text.split("\t") if format == "tsv" else dialect.fields(text)
        except csv.Error:
            fields = []
        if fields and len(fields) != len(header):
            return "FieldCount", f"the record has {len(fields)} fields where {len(header)} columns are named", None
        if not thorough:
            return None
        for field in schema:
            block = Block(line, np.zeros(1, np.int64), np.full(1, len(line)), np.zeros(1, np.int64))
            try:
                parser(pa.schema([field]), header, format, dialect)(block)
            except pa.ArrowInvalid:
                return "TypeError", f"the value of column {field.name!r} is not of type {field.type}", None
        if b"\r" in line:
            return "BareCarriageReturn", r"a \r stands alone outside of quotes", None
        return "ArrowInvalid", "the parser refused the record", None

    return diagnose


def read_records(
    stream: BinaryIO,
    *,
    max_record_bytes: int,
    block_bytes: int = BLOCK_BYTES,
    dialect: Dialect = _CSV,
    header: bool = True,
) -> Iterator[Block | BadLine]:
    """The records of a whole CSV file, the header first, numbered from -1 so that the first row is 0.

    Empty lines are no records. A quote left open in the last line of the file spoils that line alone.

    Raises:
        Unreadable: a quote is never closed, so that there is no telling which of the lines after it are records.
    """
    begun = [stream.read(len(_BOM)).removeprefix(_BOM)]  # a record without its end
    held = begun[0]  # a stand-in for it, so that a long one is not gone through again with every chunk
    number = -1 if header else 0
    dropped = 0  # bytes of it that are held no longer
    spans = False  # whether it goes over line ends
    while True:
        chunk = stream.read(block_bytes)
        lexed = held + chunk
        # What a quote or an escape at the very end means is not known yet.
        stops, is_open = record_ends(lexed.rstrip(dialect.special) if chunk else lexed, dialect)
        if chunk and not len(stops):
            begun.append(chunk)
            spans = spans or b"\n" in chunk
            size = dropped + sum(map(len, begun))
            held = _stand_in(lexed, is_open, dialect)
            if size > max_record_bytes + 2:
                begun, dropped = [held], size - len(held)
            continue
        data = b"".join(begun) + chunk
        stops += len(data) - len(held) - len(chunk)
        done = int(stops[-1]) if len(stops) else 0
        cut = 0
        ended = True  # whether the last record has its line end
        if not chunk and done < len(data):
            if not is_open:
                stops, done, ended = np.append(stops, len(data)), len(data), False
            elif b"\n" in data[done:] or (spans and not len(stops)):
                row = number + len(stops)
                raise Unreadable(
                    f"a quote that opens in {f'row {row}' if row >= 0 else 'the header'} is never closed; close it, "
                    "set `csv_quote=''` if quotes are text, or set `bad_files='reject'` to go on without the rest of "
                    "the file"
                )
            else:
                cut = len(data) - done + dropped
        begun = [data[done:]]
        spans = b"\n" in begun[0]
        held = _stand_in(begun[0], is_open, dialect)
        block, numbers, lengths = _records(data[:done], stops, number, ended)
        if dropped and len(block):
            lengths[0] += dropped
            dropped = 0
        number += len(block)
        long = lengths > max_record_bytes
        for index in np.flatnonzero(long):
            yield BadLine(int(numbers[index]), int(lengths[index]))
        if not long.all():
            yield Block(block.data, block.starts, block.ends, numbers).keep(~long)
        if cut:
            yield BadLine(number, cut, "UnclosedQuote", "a quote is never closed")
        if not chunk:
            return


def _records(data: bytes, stops: Positions, number: int, ended: bool) -> tuple[Block, Positions, Positions]:
    """The records that are not empty, their numbers and lengths."""
    starts = np.concatenate([np.zeros(1, np.int64), stops[:-1]]) if len(stops) else stops
    codes = np.frombuffer(data + b"\0", np.uint8)
    ends = stops - (codes[stops - 1] == 10)
    if not ended:
        ends[-1] = stops[-1]
    ends -= (ends > starts) & (codes[np.maximum(ends - 1, 0)] == 13)
    block = Block(data, starts, ends, np.zeros(len(stops), np.int64)).keep(ends > starts)
    return block, np.arange(number, number + len(block), dtype=np.int64), block.ends - block.starts


def _stand_in(tail: bytes, is_open: bool, dialect: Dialect) -> bytes:
    """A few bytes that leave the lexer in the state in which this beginning of a record leaves it.

    Args:
        tail: the beginning.
        is_open: whether a quote is open before the quotes and escapes at its end.
        dialect: what they are.
    """
    quote, escape, delimiter = dialect.quote.encode(), dialect.escape.encode(), dialect.delimiter.encode()
    body = tail.rstrip(dialect.special)
    run = tail[len(body) :]
    if not escape:
        run = quote * (2 - len(run) % 2) if run else b""  # two more would not change what they mean
    # A quote opens only after these, and the second may belong to the line end.
    last = body[-1:] if body.endswith((delimiter, b"\r")) and not _is_escaped(body, escape) else b""
    state = _OPEN if is_open else _INSIDE if body and not last else _START
    for code in run:
        state = _AFTER[state][code == ord(quote) if quote else False]
    return {
        _START: b"a" + last if body else b"",
        _INSIDE: b"a",
        _OPEN: quote,
        _QUOTE: quote * 2,
        _ESCAPE: b"a" + escape,
        _OPEN_ESCAPE: quote + escape,
    }[state]


# Where the lexer is: at the start of a field, inside of one, inside of quotes, after a quote inside of quotes, after an
# escape outside and inside of quotes; and where an escape and a quote lead from there.
_START, _INSIDE, _OPEN, _QUOTE, _ESCAPE, _OPEN_ESCAPE = range(6)
_AFTER = {
    _START: (_ESCAPE, _OPEN),
    _INSIDE: (_ESCAPE, _INSIDE),
    _OPEN: (_OPEN_ESCAPE, _QUOTE),
    _QUOTE: (_ESCAPE, _OPEN),
    _ESCAPE: (_INSIDE, _INSIDE),
    _OPEN_ESCAPE: (_OPEN, _OPEN),
}


def _is_escaped(data: bytes, escape: bytes) -> bool:
    """Whether the last byte stands after an escape that is not itself escaped."""
    before = data[:-1]
    return bool(escape) and (len(before) - len(before.rstrip(escape))) % 2 == 1


def record_ends(data: bytes, dialect: Dialect = _CSV) -> tuple[Positions, bool]:
    """Where each whole record ends (with its line end), and whether a quote is open at the end of the data."""
    codes = np.frombuffer(data, np.uint8)
    newlines = np.flatnonzero(codes == 10)
    quotes = np.flatnonzero(codes == ord(dialect.quote)) if dialect.quote else newlines[:0]
    escaped = bool(dialect.escape) and dialect.escape.encode() in data
    if not len(quotes) and not escaped:
        return newlines + 1, False
    padded = np.frombuffer(b"\n" + data + b"\n", np.uint8)
    before, after = padded[quotes[0::2]], padded[quotes[1::2] + 2]
    neighbours = (10, 13, *dialect.delimiter.encode(), *dialect.quote.encode())
    if not escaped and np.isin(before, neighbours).all() and np.isin(after, neighbours).all():
        # Every quote opens, closes or doubles as RFC 4180 has it, so counting them is enough.
        return newlines[np.searchsorted(quotes, newlines) % 2 == 0] + 1, len(quotes) % 2 == 1
    stops = []
    is_open = False
    for match in dialect.tokens.finditer(data):
        if data[match.start()] == 10:
            stops.append(match.start() + 1)
        if dialect.quote and match[1] is not None:
            is_open = not match[1].endswith(dialect.quote.encode())
    return np.array(stops, np.int64), is_open


def _places(schema: pa.Schema, header: Sequence[str]) -> tuple[list[pa.Field], list[int]]:
    """The fields that the header has, and where they stand in it."""
    places = {name: place for place, name in enumerate(header)}
    wanted = [field for field in schema if field.name in places]
    return wanted, [places[field.name] for field in wanted]


def _typed(columns: list[pa.Array], fields: list[pa.Field], count: int) -> pa.RecordBatch:
    typed = [
        column
        if field.type == pa.string()
        else fitted(pc.if_else(pc.equal(column, ""), pa.scalar(None, pa.string()), column), field.type)
        for column, field in zip(columns, fields, strict=True)
    ]
    if not typed:
        return pa.RecordBatch.from_struct_array(pa.array([{}] * count, pa.struct([])))
    return pa.RecordBatch.from_arrays(typed, schema=pa.schema(fields))
