"""The same documents come out of every format, whole and in order, and what is bad is named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
from dataclasses import fields
from pathlib import Path
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.testing.util import assert_that

from distilbeam.transforms.coders import RecordBatchCoder
from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import InputError, SettingsError
from distilbeam.transforms.input import planning
from distilbeam.transforms.input.formats.base import unify
from distilbeam.transforms.input.planning import plan_splits, read_schema
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import MAX_REJECTS, read_split
from distilbeam.transforms.input.splits import Split
from distilbeam.transforms.provenance import ROW, Provenance

ROWS: list[dict[str, Any]] = [
    {"id": str(n), "text": text}
    for n, text in enumerate(
        [
            "plain",
            "",
            "two  spaces ",
            'a "quoted" word',
            "comma, semicolon; pipe|",
            "Grüße 🦜 日本",
            "null",
            "NA",
            "x" * 5000,
        ]
        * 20
    )
]


def write(folder: Path, name: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    path = folder / name
    kind = name.partition(".")[2].removesuffix(".gz").removesuffix(".zst")
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
        return path
    if kind == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=len(row["text"]) % 2 == 0) + "\n" for row in rows)
    elif kind == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        text = out.getvalue()
    elif kind == "tsv":
        text = "".join("\t".join(line) + "\n" for line in [list(rows[0]), *(row.values() for row in rows)])
    else:
        text = "".join(row["text"] + "\n" for row in rows)
    data = text.encode()
    if name.endswith(".gz"):  # two members, as parallel compressors write
        data = gzip.compress(data[: len(data) // 2]) + gzip.compress(data[len(data) // 2 :])
    if name.endswith(".zst"):
        data = pa.compress(data[:1000], "zstd", asbytes=True) + pa.compress(data[1000:], "zstd", asbytes=True)
    path.write_bytes(data)
    return path


NAMES = [f"d.{kind}{packed}" for kind in ("jsonl", "csv", "tsv", "txt") for packed in ("", ".gz", ".zst")]


@pytest.mark.parametrize("split_bytes", [1000, 8 << 20])
@pytest.mark.parametrize("name", ["d.parquet", *NAMES])
def test_every_format_gives_the_same_documents(tmp_path: Path, read: Any, name: str, split_bytes: int) -> None:
    found = read(write(tmp_path, name), split_bytes=split_bytes, batch_rows=7)
    expected = [{"text": row["text"]} for row in ROWS] if "txt" in name else ROWS
    assert found.rows == expected
    assert not found.rejects
    first = 0 if name.split(".")[1] in ("parquet", "csv") else 2 if "tsv" in name else 1
    assert [position for _, position in found.positions] == list(range(first, first + len(ROWS)))
    one_split = split_bytes > 1000 or name.endswith(("gz", "zst")) or "csv" in name
    assert (len(found.splits) == 1) == one_split


def test_batches_are_bounded_in_bytes_and_a_huge_row_goes_alone(tmp_path: Path, read: Any) -> None:
    rows = [{"text": "a" * size} for size in (10, 10, 3000, 10, 400, 400, 400)]
    found = read(write(tmp_path, "d.parquet", rows), batch_bytes=1000)
    assert [[len(text) for text in batch["text"].to_pylist()] for batch in found.batches] == [
        [10, 10],
        [3000],
        [10, 400, 400],
        [400],
    ]


def test_only_what_is_asked_for_is_read(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path, "d.parquet", [{"id": 1, "text": "a", "other": 2.0, "title": "t"}])
    (batch,) = read(path, text=["title", "text"], keep=["other"], id="id").batches
    assert batch.schema.names == ["other", "title", "text", "id", ROW]
    note = Provenance.of(batch)
    assert note is not None
    assert (note.text, note.transient, note.id) == (("title", "text"), ("title", "text", "id"), "id")
    (batch,) = read(path).batches
    assert batch.schema.names == ["id", "text", "other", "title", ROW]


@pytest.mark.parametrize("name", ["d.parquet", "d.jsonl", "d.csv", "d.tsv"])
def test_a_missing_column_is_answered_with_those_there_are(tmp_path: Path, read: Any, name: str) -> None:
    path = write(tmp_path, name)
    for settings in ({"text": "texts"}, {"keep": ["texts"]}, {"id": "texts"}):
        with pytest.raises(InputError, match=r"no column 'texts'.*'text'"):
            read(path, **settings)


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.tsv"])
def test_names_that_may_be_a_documents_are_not_told(tmp_path: Path, read: Any, name: str) -> None:
    path = tmp_path / name
    rows = {"d.jsonl": '{"private": 1, "words": 2}', "d.csv": "private,words", "d.tsv": "private\twords"}
    path.write_text(f"{rows[name]}\n")
    with pytest.raises(InputError, match=r"no column 'text' .*; it has 2 columns, none of a name like that") as caught:
        read(path)
    assert "private" not in str(caught.value)


def test_nulls(tmp_path: Path, read: Any) -> None:
    rows = [
        {"id": n, "title": title, "text": text}
        for n, (title, text) in enumerate([("a", "b"), (None, "b"), (None, None)])
    ]
    for name in ("d.parquet", "d.jsonl"):
        path = write(tmp_path, "d.parquet", rows)
        if name == "d.jsonl":
            path = tmp_path / name
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read(path, id="id")
        assert [row["id"] for row in found.rows] == [0, 1]
        assert [(r.stage, r.error, r.id) for r in found.rejects] == [("text", "NullText", "2")]
        assert [row["id"] for row in read(path, text=["title", "text"]).rows] == [0, 1]
        assert read(path, nulls="keep").rows == rows


def test_text_columns_of_every_string_type_come_as_string(tmp_path: Path, read: Any) -> None:
    plain = pa.array(["a", None, "ü", ""])
    for kind in (
        pa.large_string(),
        pa.string_view(),
        pa.dictionary(pa.int8(), pa.string()),
        pa.binary(),
        pa.large_binary(),
    ):
        pq.write_table(pa.table({"text": plain.cast(kind)}), tmp_path / "d.parquet")
        (batch,) = read(tmp_path / "d.parquet", nulls="keep").batches
        assert batch.schema.field("text").type == pa.string()
        assert batch["text"].equals(plain)


def test_text_that_is_not_utf8_is_set_aside_row_by_row(tmp_path: Path, read: Any) -> None:
    texts = pa.array([b"good", b"\xff\xfe", None, b"also \xc3\xbc", b"\xed\xa0\x80"])
    for column in (texts, texts.view(pa.string())):
        pq.write_table(pa.table({"text": column, "id": range(5)}), tmp_path / "d.parquet")
        found = read(tmp_path / "d.parquet", id="id", keep=["id"])
        assert found.texts == ["good", "also ü"]
        assert [(r.row, r.error, r.id, r.length) for r in found.rejects] == [
            (1, "UnicodeDecodeError", "1", 2),
            (2, "NullText", "2", None),
            (4, "UnicodeDecodeError", "4", 3),
        ]


def test_text_that_is_no_string_is_refused(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path, "d.parquet", [{"text": 5}])
    with pytest.raises(InputError, match=r"text column 'text' of .* is int64, not a string"):
        read(path)


def test_user_types_survive(tmp_path: Path, read: Any) -> None:
    table = pa.table(
        {
            "text": ["a", "b"],
            "when": pa.array([1, None], pa.timestamp("ns", "Europe/Paris")),
            "price": pa.array([1, 2], pa.int64()).cast(pa.decimal128(22, 3)),
            "tags": pa.array([["x"], None], pa.list_(pa.large_string())),
            "deep": pa.array([{"a": [{"b.c": 1}]}, None]),
            "kind": pa.array(["p", "q"]).dictionary_encode(),
            "half": pa.array([1.5, 2.5], pa.float16()),
            "a.b": pa.array([1, 2], pa.uint8()),
        }
    )
    pq.write_table(table, tmp_path / "d.parquet", row_group_size=1)
    found = read(tmp_path / "d.parquet")
    assert pa.Table.from_batches(found.batches).drop_columns([ROW]).replace_schema_metadata(None).equals(table)


def test_hive_partitions_become_columns_and_hidden_names_are_left_out(tmp_path: Path, read: Any) -> None:
    for folder in ("lang=en/year=2020", "lang=f%20r/year=__HIVE_DEFAULT_PARTITION__", "_rejects", ".tmp", "lang=en/_x"):
        (tmp_path / folder).mkdir(parents=True)
        write(tmp_path / folder, "d.jsonl", [{"text": folder}])
    (tmp_path / "_SUCCESS").write_text("")
    expected = [
        {"text": "lang=en/year=2020", "lang": "en", "year": "2020"},
        {"text": "lang=f%20r/year=__HIVE_DEFAULT_PARTITION__", "lang": "f r", "year": None},
    ]
    assert read(tmp_path).rows == expected
    assert read(f"{tmp_path}/lang=*").rows == expected
    assert read(f"{tmp_path}/*/*/*.jsonl").rows == expected
    assert read([str(tmp_path), f"{tmp_path}/**/*.jsonl"]).rows == expected
    assert read(tmp_path, keep=["year"], types={"year": "int16"}).rows == [
        {"year": 2020, "text": expected[0]["text"]},
        {"year": None, "text": expected[1]["text"]},
    ]
    write(tmp_path / "lang=en/year=2020", "d.jsonl", [{"text": "a", "lang": "en"}, {"text": "b", "lang": None}])
    assert read(f"{tmp_path}/lang=en/year=2020").rows == [
        {"text": "a", "lang": "en", "year": "2020"},
        {"text": "b", "lang": "en", "year": "2020"},
    ]


def test_files_of_different_schemas_are_unified(tmp_path: Path, read: Any) -> None:
    pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], pa.int32())}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"n": pa.array([2], pa.int64()), "extra": ["e"], "text": ["b"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"text": ["c"], "extra": pa.array(["f"]).dictionary_encode()}), tmp_path / "c.parquet")
    found = read(tmp_path, split_bytes=1)
    assert len(found.splits) == 3
    assert found.rows == [
        {"text": "a", "n": 1, "extra": None},
        {"text": "b", "n": 2, "extra": "e"},
        {"text": "c", "n": None, "extra": "f"},
    ]
    assert found.batches[0].schema.field("n").type == pa.int64()
    pq.write_table(pa.table({"text": ["d"], "n": ["five"]}), tmp_path / "d.parquet")
    with pytest.raises(InputError, match=r"column 'n' is int64 in .*b\.parquet' but string in .*d\.parquet'"):
        read(tmp_path)
    pq.write_table(pa.table({"text": ["b"], "n": pa.array([2], pa.int16())}), tmp_path / "c.parquet")
    with pytest.raises(InputError, match=r"column 'n' is int64 in .*b\.parquet' but string in .*d\.parquet'"):
        read(tmp_path)  # and not "int64 in c.parquet", which changed nothing
    assert len(read(tmp_path, keep=["extra"]).rows) == 4
    assert [row["n"] for row in read(tmp_path, types={"n": "string"}).rows] == ["1", "2", "2", "five"]


def test_many_files_of_few_schemas_are_unified_schema_by_schema(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(24):
        kind = (pa.int32(), pa.int64(), pa.int16())[number % 3]
        pq.write_table(pa.table({"text": ["a"], "n": pa.array([1], kind)}), tmp_path / f"{number:02}.parquet")
    calls = []
    monkeypatch.setattr(planning, "unify", lambda fields: calls.append(fields) or unify(fields))
    (split,) = plan_splits(ReadSettings(path=str(tmp_path)))
    assert read_schema(split) == pa.schema([("text", pa.string()), ("n", pa.int64())])
    assert len(calls) == 2


def test_small_files_share_a_split_and_parts_do_not_mix(tmp_path: Path, read: Any) -> None:
    for number in range(10):
        write(tmp_path, f"{number}.jsonl" if number % 2 else f"{number}.parquet", [{"text": str(number)}])
    write(tmp_path, "55.jsonl", [{"text": "x"}]).write_text("\n")
    found = read([tmp_path / "*.parquet", tmp_path / "*.jsonl"])
    assert len(found.splits) == 1
    assert [batch.num_rows for batch in found.batches] == [1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1]
    assert found.texts == [str(number) for number in range(10)]


def test_the_id_of_a_split_is_computed_once_however_many_parts_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        write(tmp_path, f"{number:02}.jsonl", [{"text": str(number)}])
    settings = ReadSettings(path=str(tmp_path))
    (split,) = plan_splits(settings)
    expected = split.id
    calls = []
    monkeypatch.setattr(Split, "id", property(lambda self: calls.append(self) or expected))
    notes = [Provenance.of(batch) for batch in read_split(split, settings)]
    assert [(note.part, note.split, note.source) for note in notes if note] == [
        (number, expected, part.source) for number, part in enumerate(split.parts)
    ]
    assert len(calls) == 1


def test_a_batch_tells_a_bounded_number_of_rejects(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text("".join('{"text": null}\n' if n % 3 else "{broken\n" for n in range(3500)) + '{"text": "a"}\n')
    found = read(path)
    assert found.texts == ["a"]
    assert [reject.row for reject in found.rejects] == list(range(1, 3501))
    counts = [len(note.rejects) for batch in found.batches if (note := Provenance.of(batch))]
    assert max(counts) <= MAX_REJECTS
    assert sum(counts) == 3500


def test_a_large_row_group_is_cut_into_row_ranges(tmp_path: Path, read: Any) -> None:
    rows = [{"text": str(n) * 10, "n": n} for n in range(5000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet", row_group_size=2500)
    found = read(tmp_path, split_bytes=2000, batch_rows=100)
    assert len(found.splits) == 32
    assert found.rows == rows
    assert [position for _, position in found.positions] == list(range(5000))


def test_split_ids_depend_on_input_and_not_on_order(tmp_path: Path) -> None:
    a, b = write(tmp_path, "a.jsonl"), write(tmp_path, "b.jsonl", ROWS[:50])
    plans = [plan_splits(ReadSettings(path=p, split_bytes=1000)) for p in ([str(a), str(b)], [str(b), str(a), str(a)])]
    assert plans[0] == plans[1]
    assert len({split.id for split in plans[0]}) == len(plans[0])
    write(tmp_path, "b.jsonl", ROWS[:51])
    assert {s.id for s in plan_splits(ReadSettings(path=str(tmp_path), split_bytes=1000))} & {s.id for s in plans[0]}


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    settings = ReadSettings(path=str(write(tmp_path, "a.jsonl")))
    (split,) = plan_splits(settings)
    write(tmp_path, "a.jsonl", ROWS[:-1])
    with pytest.raises(InputError, match=r"a\.jsonl' changed"):
        list(read_split(split, settings))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(InputError, match="no such file"):
        list(read_split(split, settings))


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.txt.gz", "d.csv.zst", "d.tsv.zst", "d.parquet"])
@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_file_fails_the_job(tmp_path: Path, read: Any, name: str, damage: str) -> None:
    path = write(tmp_path, name)
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[: len(whole) - 9], "empty": b"", "foreign": b"secret text\n" * 10}[damage])
    with pytest.raises(InputError, match=f"cannot read .*{name}") as caught:
        read(path)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__ or "secret" not in repr(caught.value.__cause__)


def test_damage_inside_a_parquet_file_fails_the_job(tmp_path: Path, read: Any) -> None:
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(1000)]}), path, compression="zstd")
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot read"):
        read(path)


def test_wrong_input_is_answered_with_the_cure(tmp_path: Path, read: Any) -> None:
    with pytest.raises(InputError, match=r"no file matches .*/\*\.jsonl"):
        read(f"{tmp_path}/*.jsonl")
    with pytest.raises(InputError, match="no file matches"):
        read(tmp_path)
    (tmp_path / "d.docx").write_text("x")
    with pytest.raises(InputError, match=r"known extensions are \.parquet.*set `format` to"):
        read(tmp_path)
    assert read(tmp_path, format="text").texts == ["x"]
    (tmp_path / "a.json").write_text('\n [{"text": "a"}]')
    with pytest.raises(InputError, match="JSON array"):
        read(tmp_path / "a.json")
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(InputError, match="no header"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("text,n,n\na,b,c\n")
    with pytest.raises(InputError, match="columns 2, 3 have the same name"):
        read(tmp_path / "a.csv")
    write(tmp_path, "r.parquet", [{"text": "a", ROW: 1}])
    with pytest.raises(InputError, match=r"'_row'.*rename"):
        read(tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", keep=["text"]).texts == ["a"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": []}, "list of inputs is empty"),
        ({"path": "s3://key:secret@bucket/x"}, "password"),
        ({"path": "simplecache::s3://b/x"}, "chained"),
        ({"path": "http://169.254.169.254/"}, "cannot use http://"),
        ({"text": []}, "`text` must be"),
        ({"text": ["a", "a"]}, "twice"),
        ({"text": "_row"}, "rename"),
        ({"format": "xml"}, "'parquet', 'jsonl'"),
        ({"nulls": "drop"}, "'reject', 'keep'"),
        ({"types": {"x": "number"}}, "Arrow does not know"),
        ({"types": {"text": "int64"}}, "text column"),
        ({"split_bytes": 0}, "whole number from 1"),
        ({"batch_rows": 2.5}, "whole number from 1"),
        ({"separator": None}, "`separator` must be a text"),
    ],
)
def test_wrong_settings_fail_at_construction(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        ReadDocuments(**{"path": "x.jsonl", **settings})
    assert "secret" not in str(caught.value)


def test_every_setting_reaches_the_reader() -> None:
    given: dict[str, Any] = {
        "path": ["a.csv", "b.csv"],
        "text": ["title", "body"],
        "keep": ["n"],
        "format": "csv",
        "nulls": "keep",
        "id": "key",
        "separator": "|",
        "types": {"n": "int64"},
        "split_bytes": 11,
        "batch_rows": 12,
        "batch_bytes": 13,
        "max_line_bytes": 14,
        "decode_bytes": 15 << 26,
        "bad_files": "reject",
        "rejects_include_text": True,
        "strict": True,
        "limit": 16,
        "columns": ["n", "title", "body", "key"],
        "csv_delimiter": ";",
        "csv_quote": "'",
        "csv_escape": "^",
    }
    assert given.keys() == {field.name for field in fields(ReadSettings)}
    assert ReadDocuments(**given).settings == ReadSettings(**given)
    assert ReadDocuments("a.csv").settings == ReadSettings(path="a.csv")
    settings = ReadSettings(path="a.csv", text="body", keep=["n"], types={"n": "int8"})
    assert (settings.path, settings.text, settings.keep) == (("a.csv",), ("body",), ("n",))
    assert settings.types == {"n": pa.int8()}


class HalfDone:
    """A ledger that has splits 1 and 4."""

    def plan(self, settings: ReadSettings) -> list[tuple[Split, bool]]:
        return [(split, split.ordinal in (1, 4)) for split in plan_splits(settings)]

    def begin(self, split: str) -> int:
        return 1

    def end(self, split: str) -> None:
        pass


def test_in_a_pipeline_on_memory_with_finished_splits(read: Any) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    lines = [json.dumps(row) for row in ROWS]
    lines[7] = "{broken"
    memory.pipe_file("/corpus/part.jsonl", "\n".join(lines).encode())
    try:
        plan = plan_splits(ReadSettings(path="memory://corpus", split_bytes=9000))
        assert len(plan) > 5
        documents = ReadDocuments("memory://corpus", split_bytes=9000, ledger=HalfDone())
        pickle.dumps(ReadDocuments("memory://corpus", types={"n": "double"}).settings)

        def check(batches: list[pa.RecordBatch]) -> None:
            notes = [(note, batch) for batch in batches if (note := Provenance.of(batch))]
            notes.sort(key=lambda pair: (pair[0].ordinal, pair[0].sequence))
            finished = [(note.ordinal, batch.num_rows, note.last) for note, batch in notes if note.finished]
            assert finished == [(1, 0, True), (4, 0, True)]
            skipped = set()
            for ordinal in (1, 4):
                skipped |= {text["id"] for b in read_split(plan[ordinal], documents.settings) for text in b.to_pylist()}
            good = [row for row in ROWS if row["id"] not in skipped and row["id"] != "7"]
            assert [(row["id"], row["text"]) for _, b in notes for row in b.to_pylist()] == [
                (row["id"], row["text"]) for row in good
            ]
            assert [reject.row for note, _ in notes for reject in note.rejects] == [8]

        pipeline = beam.Pipeline(FnApiRunner())
        batches = pipeline | documents
        assert isinstance(beam.coders.registry.get_coder(batches.element_type), RecordBatchCoder)
        assert_that(batches | beam.Reshuffle(), check)
        result = pipeline.run()
        result.wait_until_finish()
        counters = {metric.key.metric.name: metric.committed for metric in result.metrics().query()["counters"]}
        assert counters["read_rejects"] == 1
        assert 0 < counters["documents_read"] < len(ROWS)
    finally:
        memory.rm("/corpus", recursive=True)


def test_the_coder_sends_a_slice_alone_and_keeps_provenance() -> None:
    batch = pa.record_batch({"text": ["x" * 100] * 100_000, "kind": pa.array(["a", "b"] * 50_000).dictionary_encode()})
    batch = Provenance("file", "split").attach(batch.slice(500, 10))
    encoded = RecordBatchCoder().encode(batch)
    assert len(encoded) < 4000
    decoded = RecordBatchCoder().decode(encoded)
    assert decoded.equals(batch, check_metadata=True)
