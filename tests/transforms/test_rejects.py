"""Rejects as rows, and how many of them a job bears."""

from dataclasses import replace
from fractions import Fraction
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.util import assert_that, equal_to

from distilbeam.transforms.errors import OutputError, RejectLimitError, SettingsError
from distilbeam.transforms.input.splits import Part, Split, with_totals
from distilbeam.transforms.provenance import Provenance, Reject
from distilbeam.transforms.rejects import (
    REJECTS_SCHEMA,
    RejectLimit,
    Rejects,
    RejectWatch,
    parse_max_rejects,
    rejects_table,
)

_REJECTS = (
    Reject("read", "JSONDecodeError", "not JSON", row=4, length=9),
    Reject("model", "RuntimeError", "it broke", row=7, id="k", text="asked for"),
    Reject("read", "UnicodeDecodeError", "no text"),
)


def batch(**fields: Any) -> pa.RecordBatch:
    return Provenance("/a.jsonl", "s", rejects=_REJECTS, **fields).attach(pa.record_batch({"x": [1]}))


def test_rows_or_lines() -> None:
    records = rejects_table(Provenance.of(batch(unit="row")))
    assert records.schema == REJECTS_SCHEMA
    assert records["row"].to_pylist() == [4, 7, None]
    assert records["line"].to_pylist() == [None] * 3
    lines = rejects_table(Provenance.of(batch(unit="line")))
    assert lines["line"].to_pylist() == [4, 7, None]
    assert lines["row"].to_pylist() == [None] * 3
    assert lines.to_pylist()[1] == {
        "source": "/a.jsonl",
        "row": None,
        "line": 7,
        "id": "k",
        "stage": "model",
        "error": "RuntimeError",
        "reason": "it broke",
        "length": None,
        "text": "asked for",
    }
    none = rejects_table(replace(Provenance.of(batch()), rejects=()))
    assert none.schema == REJECTS_SCHEMA
    assert none.num_rows == 0


def test_rejects_as_a_transform() -> None:
    """Line numbers that only the commit can know are left out."""
    none = Provenance("/a.jsonl", "s").attach(pa.record_batch({"x": [1]}))
    batches = [batch(unit="line"), none, batch(unit="line", relative=True), batch(unit="row")]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        rows = pipeline | beam.Create(batches) | Rejects() | beam.FlatMap(lambda batch: batch.to_pylist())
        found = rows | beam.Map(lambda row: (row["row"], row["line"], row["error"]))
        lines = [(None, 4), (None, 7), (None, None)]
        expected = [*lines, *[(None, None)] * 3, (4, None), (7, None), (None, None)]
        errors = ["JSONDecodeError", "RuntimeError", "UnicodeDecodeError"] * 3
        assert_that(found, equal_to([(*pair, error) for pair, error in zip(expected, errors, strict=True)]))


def test_rejects_need_provenance() -> None:
    with pytest.raises(OutputError, match="ReadDocuments"), beam.Pipeline(runner=FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create([pa.record_batch({"x": [1]})]) | Rejects()


@pytest.mark.parametrize(
    ("value", "rejects", "rows", "exceeded"),
    [
        ("1%", 250, 25_000, False),
        ("1%", 251, 25_000, True),
        ("0.3%", 3, 1000, False),
        ("0.3%", 4, 1000, True),
        ("0%", 0, 0, False),
        ("0%", 1, 10**12, True),
        ("100%", 5, 5, False),
        (0, 0, 5, False),
        (0, 1, 5, True),
        ("10", 10, 10, False),
        (10, 11, 10**9, True),
        (None, 10**9, 10**9, False),
        ("none", 5, 5, False),
    ],
)
def test_limits(value: Any, rejects: int, rows: int, exceeded: bool) -> None:
    assert parse_max_rejects(value).exceeded(rejects, rows) is exceeded


def test_fractions_are_exact() -> None:
    assert parse_max_rejects(" 0.1 % ").fraction == Fraction(1, 1000)
    assert str(parse_max_rejects("2.50%")) == "2.5%"
    assert str(parse_max_rejects("3")) == "3"


@pytest.mark.parametrize(
    "value", [-1, 0.5, True, "", "%", "-1%", "100.1%", "1/0%", "1/50%", "many", "nan%", "inf%", "1e3"]
)
def test_limits_that_are_none(value: Any) -> None:
    with pytest.raises(SettingsError, match="such as 100"):
        parse_max_rejects(value)


def test_a_split_that_is_begun_anew_is_counted_anew() -> None:
    def bad(split: str, sequence: int, *errors: str) -> Provenance:
        return Provenance("f", split, sequence=sequence, rejects=tuple(Reject("read", error, "-") for error in errors))

    watch = RejectWatch(RejectLimit(count=3))
    watch.add(bad("other", 0, "Other"), 0)
    for _ in range(3):
        watch.add(bad("s", 0, "Early"), 0)
        watch.add(bad("s", 1, "Late"), 0)
    with pytest.raises(RejectLimitError) as caught:
        watch.add(bad("s", 2, "Late"), 5)
    assert str(caught.value).startswith("4 of the first 9 rows were set aside")
    assert "Late in stage read (2): -; Other in stage read (1): -; Early in stage read (1): -. The last" in str(
        caught.value
    )


def counted_batches(
    rows: list[bool], *, splits: int, known: bool, bytes_of_row: int = 100
) -> list[tuple[Provenance, int]]:
    """Batches of ten rows of a job, of which each is good or bad, in splits of equal size."""
    size = len(rows) // splits
    total = (len(rows), 0) if known else (0, len(rows) * bytes_of_row)
    batches = []
    for split in range(splits):
        for sequence, start in enumerate(range(split * size, (split + 1) * size, 10)):
            bad = sum(rows[start : start + 10])
            note = Provenance(
                "/in",
                str(split),
                sequence=sequence,
                seen=10 * (sequence + 1),
                last=10 * (sequence + 1) == size,
                bytes=0 if known else size * bytes_of_row,
                total=total,
                rejects=(Reject("text", "NullText", "the text is null"),) * bad,
            )
            batches.append((note if note.last else replace(note, bytes=0), 10 - bad))
    return batches


def seen_until_end(batches: list[tuple[Provenance, int]], limit: str = "1%") -> int | None:
    """Rows after which the job is ended; None if it is not."""
    watch, seen = RejectWatch(parse_max_rejects(limit)), 0
    for note, good in batches:
        seen += 10
        try:
            watch.add(note, good)
        except RejectLimitError:
            return seen
    return None


@pytest.mark.parametrize("known", [True, False])
def test_many_rejects_end_a_job_before_it_has_read_all(known: bool) -> None:
    rows = [number % 10 < 3 for number in range(100_000)]
    seen = seen_until_end(counted_batches(rows, splits=100, known=known))
    assert seen is not None
    assert sum(rows[:seen]) > 1000, "it is no guess: what was seen is too much for all rows"
    assert seen < (4_000 if known else 15_000)
    assert seen_until_end(counted_batches(rows, splits=100, known=known), "31%") is None


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("at", [0, 50_000, 99_000])
def test_a_cluster_of_rejects_within_the_limit_ends_no_job(at: int, known: bool) -> None:
    rows = [at <= number < at + 1000 for number in range(100_000)]
    if at == 0:
        rows[5] = False  # a thousand rows that are all bad end a job whatever comes
    assert seen_until_end(counted_batches(rows, splits=100, known=known)) is None
    rows[at - 1] = rows[5] = True
    if at == 50_000:
        assert (seen_until_end(counted_batches(rows, splits=100, known=known)) is not None) is known


def test_lines_to_come_may_be_four_times_as_short() -> None:
    """The first split has 500 rows of 1,000 bytes, a tenth of them bad; all others have rows of a quarter of that."""
    watch = RejectWatch(parse_max_rejects("1%"))
    reject = Reject("read", "JSONDecodeError", "not JSON")
    total = (0, 10 * 500_000)
    watch.add(Provenance("/in", "0", seen=500, last=True, bytes=500_000, total=total, rejects=(reject,) * 150), 350)
    for split in range(1, 10):
        watch.add(Provenance("/in", str(split), seen=2000, last=True, bytes=500_000, total=total), 2000)
    assert not parse_max_rejects("1%").exceeded(150, 500 + 9 * 2000)


def test_rows_that_a_step_in_between_drops_still_count_as_read() -> None:
    watch = RejectWatch(parse_max_rejects("1%"))
    reject = Reject("read", "JSONDecodeError", "not JSON")
    total = (0, 10_000)
    for split in range(10):
        note = Provenance("/in", str(split), seen=1000, last=True, bytes=1000, total=total, rejects=(reject,) * 9)
        watch.add(note, 10)


def test_a_plan_that_knows_its_rows_tells_them() -> None:
    lines = Split((Part("/a", "jsonl", 9, "v"),), 0, 3, b"", 700)
    rows = Split((Part("/b", "parquet", 9, "v", start=5, stop=25),), 1, 3, b"", 300)
    kept = Split((Part("/c", "", 9, "v"),), 2, 3, b"", 0, record="x-y", seen=40)
    assert [split.rows for split in (lines, rows, kept)] == [None, 20, 40]
    assert [split.total for split in with_totals([lines, rows, kept])] == [(60, 700)] * 3
    assert [split.total for split in with_totals([lines, replace(kept, seen=None)])] == [None, None]


def test_a_job_that_ends_early_tells_a_reason_of_each_cause() -> None:
    watch = RejectWatch(RejectLimit(count=2))
    reject = Reject("read", "TypeError", "the value of column 'stars'\ndoes not fit")
    with pytest.raises(RejectLimitError) as caught:
        watch.add(Provenance("/in", "s", rejects=(reject, reject, Reject("text", "NullText", "the text is null"))), 5)
    assert (
        "Most frequent: TypeError in stage read (2): the value of column 'stars' does not fit; "
        "NullText in stage text (1): the text is null. The last was in '/in'; " in str(caught.value)
    )
