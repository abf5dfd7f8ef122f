"""Rows and dicts on a worker: what they come out as, when and in which windows, and what becomes of those that fail."""

import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics import MetricsFilter
from apache_beam.runners.direct.direct_runner import BundleBasedDirectRunner
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing import test_stream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, IntervalWindow, Sessions, SlidingWindows, TimestampedValue

from distilbeam.transforms import Encoder, Tokenize, workers
from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.metrics import Live, named
from tests.checkpoints import Checkpoints

TEXTS = ["the cat sat", "good film!", "bad", "naïve café", "", "the " * 40]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})


@pytest.fixture
def tokenize(checkpoints: Checkpoints) -> Callable[..., Tokenize]:
    return lambda **settings: Tokenize(checkpoints.bare, **settings)


@pytest.fixture
def ids(checkpoints: Checkpoints) -> list[list[int]]:
    tokens = Encoder.load(checkpoints.bare, device="cpu", dtype="float32").tokenize(TEXTS)
    return [tokens.ids[start:end].tolist() for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)]


def pipeline() -> beam.Pipeline:
    return beam.Pipeline(runner=FnApiRunner())


def as_row(fields: dict[str, Any]) -> beam.Row:
    return beam.Row(**fields)


class Placed(beam.DoFn):
    """(number of the row, its time, start and end of its window)"""

    def process(
        self, row: Any, time: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam
    ) -> Iterator[Any]:
        number = row["number"] if isinstance(row, dict) else row.number
        span = (float(window.start), float(window.end)) if isinstance(window, IntervalWindow) else None
        yield number, float(time), span


def rows(times: list[float]) -> list[TimestampedValue]:
    return [TimestampedValue({"number": i, "text": TEXTS[i % len(TEXTS)]}, time) for i, time in enumerate(times)]


TIMES = [0.5, 3.0, 9.999, 10.0, 47.25, 12.0, 1.0, 31.5]


@pytest.mark.parametrize("limit", [4096, 3])
@pytest.mark.parametrize(
    "windows", [None, FixedWindows(10), SlidingWindows(20, 5), Sessions(4)], ids=lambda windows: type(windows).__name__
)
def test_rows_keep_their_time_and_their_windows(
    tokenize: Callable[..., Tokenize], monkeypatch: pytest.MonkeyPatch, windows: Any, limit: int
) -> None:
    """Exactly as a step gives them that looks at one row after the other."""
    monkeypatch.setattr(workers, "_MOST_WAITING", limit)

    def check(actual: list[tuple[str, Any]]) -> None:
        before, after = (sorted(place for when, place in actual if when == name) for name in ("before", "after"))
        assert len(before) >= len(TIMES)
        assert before == after

    with pipeline() as p:
        found = p | beam.Create(rows(TIMES)) | beam.Map(lambda row: row).with_output_types(dict[str, Any])
        found = found if windows is None else found | "windows" >> beam.WindowInto(windows)
        places = [
            each | f"places {name}" >> beam.ParDo(Placed()) | name >> beam.Map(lambda place, name: (name, place), name)
            for name, each in (("before", found), ("after", found | tokenize()))
        ]
        assert_that(places | beam.Flatten() | "to one" >> beam.WindowInto(beam.window.GlobalWindows()), check)


def test_windows_may_follow(tokenize: Callable[..., Tokenize]) -> None:
    """Minutes of the rows' own times, where all rows had the end of the global window before."""
    with pipeline() as p:
        found = p | beam.Create(rows([0, 59, 60, 119, 300]))
        counted = found | tokenize() | "minutes" >> beam.WindowInto(FixedWindows(60))
        counted = counted | beam.CombineGlobally(beam.combiners.CountCombineFn()).without_defaults()
        assert_that(counted | "to one" >> beam.WindowInto(beam.window.GlobalWindows()), equal_to([2, 2, 1]))


def test_an_element_of_many_windows_is_computed_once(tokenize: Callable[..., Tokenize]) -> None:
    p = pipeline()
    _ = p | beam.Create(rows(TIMES)) | beam.WindowInto(SlidingWindows(60, 5)) | tokenize()
    result = p.run()
    result.wait_until_finish()
    (documents,) = result.metrics().query(MetricsFilter().with_name("documents"))["counters"]
    assert documents.committed == len(TIMES)


def test_the_same_element_twice_stays_twice(tokenize: Callable[..., Tokenize]) -> None:
    element = {"number": 1, "text": "the cat"}
    with pipeline() as p:
        once = p | beam.Create([element])
        twice = (once, once) | beam.Flatten() | tokenize() | beam.combiners.Count.Globally()
        assert_that(twice, equal_to([2]))


def test_on_a_stream(tokenize: Callable[..., Tokenize], ids: list[list[int]]) -> None:
    stream = test_stream.TestStream(coder=beam.coders.FastPrimitivesCoder())
    for number, time in enumerate((1, 11, 12)):
        stream = stream.add_elements([TimestampedValue({"number": number, "text": TEXTS[number]}, time)])
    options = beam.options.pipeline_options.PipelineOptions(streaming=True)
    with beam.Pipeline(runner=BundleBasedDirectRunner(), options=options) as p:
        found = p | stream.advance_watermark_to_infinity() | beam.WindowInto(FixedWindows(10)) | tokenize()
        grouped = found | beam.WithKeys(0) | beam.GroupByKey()
        numbers = grouped | beam.MapTuple(lambda _, found: sorted((row["number"], row["input_ids"]) for row in found))
        numbers = numbers | "to one" >> beam.WindowInto(beam.window.GlobalWindows())
        assert_that(numbers, equal_to([[(0, ids[0])], [(1, ids[1]), (2, ids[2])]]))


@pytest.mark.parametrize("kind", [None, dict, Any, dict[str, Any]])
def test_dicts_come_back_as_dicts(tokenize: Callable[..., Tokenize], ids: list[list[int]], kind: Any) -> None:
    elements = [{"id": number, "text": text, "tags": ["a"]} for number, text in enumerate(TEXTS)]
    counts = [len(each) for each in ids]
    expected = [
        {**element, "t_input_ids": own, "t_token_count": count, "t_truncated": count == 64}
        for element, own, count in zip(elements, ids, counts, strict=True)
    ]
    with pipeline() as p:
        found = p | beam.Create(elements)
        found = found if kind is None else found | beam.Map(lambda row: row).with_output_types(kind)
        assert_that(found | tokenize(prefix="t_") | beam.Reshuffle(), equal_to(expected))


def test_rows_are_counted_for_their_job(tokenize: Callable[..., Tokenize], ids: list[list[int]]) -> None:
    live = Live()
    with named(live) as job:
        transform = tokenize()
        transform.job = job
        with pipeline() as p:
            _ = p | beam.Create([{"text": text} for text in TEXTS]) | transform
    counts = live.read()
    assert (counts["rows"], counts["tokens"]) == (len(TEXTS), sum(map(len, ids)))
    assert counts["read_bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_rows_of_unknown_fields(tokenize: Callable[..., Tokenize], ids: list[list[int]]) -> None:
    with pipeline() as p:
        found = (
            p | beam.Create([{"id": 7, "text": TEXTS[0]}]) | beam.Map(lambda fields: beam.Row(**fields)) | tokenize()
        )
        expected = beam.Row(id=7, text=TEXTS[0], input_ids=ids[0], token_count=len(ids[0]), truncated=False)
        assert_that(found, equal_to([expected]))


class Body(NamedTuple):
    body: str


@pytest.mark.parametrize(
    ("element", "message"),
    [
        (Body("private"), "a row has no text field 'text'; it has 1 column, none of a name like that"),
        ({"text": "private", "token_count": 1}, "a row has a field 'token_count' already; set `prefix`"),
    ],
)
def test_rows_that_show_wrong_settings(tokenize: Callable[..., Tokenize], element: Any, message: str) -> None:
    p = pipeline()
    _ = p | beam.Create([element]) | beam.Map(lambda row: row).with_output_types(Any) | tokenize()
    with pytest.raises(SettingsError, match=message) as caught:
        p.run().wait_until_finish()
    assert "private" not in str(caught.value)


@pytest.mark.parametrize("apart", [False, True])
def test_a_dict_without_text_has_no_features(
    tokenize: Callable[..., Tokenize], apart: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """As one whose text is None, said once; what it lacks it does not get."""
    elements = [{"id": 1, "text": "the cat"}, {"id": 2}, {"id": 3, "body": "private"}, {"id": 4, "text": None}, {}]
    nothing = {"input_ids": None, "token_count": None, "truncated": None}
    p = pipeline()
    transform = tokenize(text=("title", "text"))
    found = p | beam.Create(elements) | (transform.with_exception_handling() if apart else transform)
    good = found[0] if apart else found
    if apart:
        assert_that(found[1], equal_to([]), label="bad")
    without = good | beam.Filter(lambda row: row.get("id") != 1)
    assert_that(without, equal_to([{**element, **nothing} for element in elements[1:]]), label="without")
    counts = good | "one" >> beam.Filter(lambda row: row.get("id") == 1) | beam.Map(lambda row: row["token_count"] > 0)
    assert_that(counts, equal_to([True]), label="with")
    with caplog.at_level(logging.WARNING, workers.__name__):
        result = p.run()
        result.wait_until_finish()
    told = [record.getMessage() for record in caplog.records if "has no text field" in record.getMessage()]
    assert [message.split(";")[0] for message in told] == [
        "a dict has no text field 'title'",
        "a dict has no text field 'text'",
    ]
    assert "private" not in caplog.text


BAD = [
    {"id": 1, "text": "the cat"},
    {"id": 2, "text": 5},
    {"id": 3, "text": None},
    {"id": 4, "text": "private"},
    {"id": 5, "text": "the cat sat"},
]


def rejected(result: Any) -> int:
    (count,) = result.metrics().query(MetricsFilter().with_name("rejected_by_model"))["counters"]
    return int(count.committed)


def test_rows_that_fail_stay_counted_and_said(
    tokenize: Callable[..., Tokenize], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_on(monkeypatch, "private")
    p = pipeline()
    found = p | beam.Create(BAD) | tokenize()
    assert_that(
        found | beam.Map(lambda row: (row["id"], row["input_ids"] is None)),
        equal_to([(1, False), (2, True), (3, True), (4, True), (5, False)]),
    )
    with caplog.at_level(logging.WARNING, workers.__name__):
        result = p.run()
        result.wait_until_finish()
    assert rejected(result) == 2
    told = [record.getMessage() for record in caplog.records if record.name == workers.__name__]
    assert len(told) == 2
    assert "the text field 'text' is of type int" in told[0]
    assert "private" not in "".join(told)


@pytest.mark.parametrize("kind", ["dicts", "rows"])
def test_rows_that_fail_are_set_apart(
    tokenize: Callable[..., Tokenize], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_on(monkeypatch, "private")
    p = pipeline()
    found = p | beam.Create(BAD)
    if kind == "rows":
        found = found | beam.Map(as_row)
    good, bad = found | tokenize().with_exception_handling()

    def fields(row: Any) -> dict[str, Any]:
        return row if isinstance(row, dict) else row.as_dict()

    assert_that(good | "good" >> beam.Map(lambda row: fields(row)["id"]), equal_to([1, 3, 5]), label="g")
    letters = bad | "bad" >> beam.Map(lambda letter: (fields(letter[0])["id"], letter[1][0], letter[1][2]))
    assert_that(letters, equal_to([(2, "TypeError", []), (4, "RuntimeError", [])]), label="b")
    result = p.run()
    result.wait_until_finish()
    assert rejected(result) == 2


def test_rows_of_batches_that_fail(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch without provenance, whose rows no reject can name."""
    break_on(monkeypatch, "bad")
    batch = pa.record_batch({"id": [1, 2, 3], "text": ["the cat", "bad", None]})
    p = pipeline()
    start = p | beam.Create([batch])
    kept = start | "kept" >> Tokenize(checkpoints.bare)
    good, bad = start | "apart" >> Tokenize(checkpoints.bare).with_exception_handling()
    assert_that(
        kept | "k" >> beam.Map(lambda batch: batch["input_ids"].is_valid().to_pylist()),
        equal_to([[True, False, False]]),
        label="kept",
    )
    assert_that(good | "g" >> beam.Map(lambda batch: batch["id"].to_pylist()), equal_to([[1, 3]]), label="good")
    assert_that(
        bad | "b" >> beam.Map(lambda letter: (letter[0].to_pylist(), letter[1][0])),
        equal_to([([{"id": 2, "text": "bad"}], "RuntimeError")]),
        label="bad",
    )
    p.run().wait_until_finish()


def break_on(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    from distilbeam.transforms import encoder

    original = encoder.Encoder.outputs

    def outputs(self: Any, texts: pa.Array, spec: Any) -> Any:
        found = original(self, texts, spec)
        failed = {
            row: ("model", "RuntimeError", "it failed") for row in range(len(texts)) if texts[row].as_py() == text
        }
        kept = [at for at, row in enumerate(found.rows) if row not in failed]
        return type(found)(found.rows[kept], [column.take(pa.array(kept)) for column in found.columns], failed)

    monkeypatch.setattr(encoder.Encoder, "outputs", outputs)
