"""Rejects of rows whose id no Python object can hold, or no Arrow string."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.pipelines.inspection import inspect
from distilbeam.transforms.encoder import Outputs
from distilbeam.transforms.featurization import FeatureSpec, featurize
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.output.manifest import MANIFEST, Manifest, SplitRecord
from distilbeam.transforms.output.records import FileRecord, PartRecord, Statistics, final_record
from distilbeam.transforms.output.writable import set_aside
from distilbeam.transforms.provenance import ROW, Provenance, Reject, show_value
from distilbeam.transforms.rejects import rejects_table
from distilbeam.transforms.storage import filesystems

_BEYOND = {
    "date": (pa.array([10**7], pa.date32()), "29349-01-26"),
    "long date": (pa.array([86_400_000 * 10**7], pa.date64()), "29349-01-26"),
    "time": (pa.array([10**18], pa.timestamp("us")), "1000000000000000000"),
    "far time": (pa.array([-(2**62)], pa.timestamp("s", "UTC")), "-4611686018427387904"),
    "no zone": (pa.array([5], pa.timestamp("us", "Nowhere/Land")), "1970-01-01 00:00:00.000005"),
    "duration": (pa.array([2**62], pa.duration("s")), "4611686018427387904"),
    "list": (pa.array([[10**7]], pa.list_(pa.date32())), "29349-01-26"),
    "struct": (pa.array([{"a": 10**7}], pa.struct([("a", pa.date32())])), "29349-01-26"),
    "category": (pa.array([10**7], pa.date32()).dictionary_encode(), "29349-01-26"),
    "huge": (pa.array([["x" * 10] * 100_000]), "xxx"),
}


def beyond() -> Any:
    return pytest.mark.parametrize(("column", "shown"), _BEYOND.values(), ids=_BEYOND)


@beyond()
def test_an_id_that_python_cannot_hold_is_shown_all_the_same(column: pa.Array, shown: str) -> None:
    reject = Reject.of("text", "NullText", "the text is null", row=0, id=column[0])
    assert shown in reject.id
    assert len(reject.id) <= 200


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, None), (7, "7"), ("k", "k"), (b"k\xff", "k\\xff"), (pa.scalar(None, pa.date32()), None), (1.5, "1.5")],
)
def test_other_values_are_as_python_shows_them(value: object, shown: str | None) -> None:
    assert show_value(value) == show_value(pa.scalar(value)) == shown


def test_no_id_and_no_text_is_more_than_arrow_can_hold() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    ids = ["\ud800", "a" * 199 + "\udcff", 10**5000, Odd(), pa.array([b"\xff"]).view(pa.string())[0]]
    rejects = tuple(Reject.of("read", "E", "why", id=value, text=text) for value in ids for text in ("\udfff", b"\xff"))
    table = rejects_table(Provenance("/a", "s", rejects=rejects))
    table.validate(full=True)
    assert table["id"].null_count == 0
    assert json.loads(json.dumps(table.to_pylist())) == table.to_pylist()


@beyond()
def test_such_a_row_without_text_is_set_aside_by_the_reader(column: pa.Array, shown: str, tmp_path: Path) -> None:
    if pa.types.is_duration(column.type) or str(column.type) == "timestamp[s, tz=UTC]":
        pytest.skip("no value of a Parquet file")
    rows = pa.table({"when": pa.concat_arrays([column, column]), "text": pa.array([None, "fine"], pa.string())})
    pq.write_table(rows, tmp_path / "d.parquet")
    settings = ReadSettings(str(tmp_path), id="when", keep=())
    batches = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    assert [text for batch in batches for text in batch["text"].to_pylist()] == ["fine"]
    (reject,) = [reject for batch in batches for reject in Provenance.of(batch).rejects]
    assert (reject.error, reject.row) == ("NullText", 0)
    assert shown in reject.id


def test_half_a_surrogate_pair_in_the_id_of_a_bad_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "a", "text": "fine", "x": 1}\n{"id": "\\ud800", "text": "t", "x": NaN}\n')
    settings = ReadSettings(str(tmp_path), id="id", types={"x": "double"})
    (batch,) = [batch for split in plan_splits(settings) for batch in read_split(split, settings)]
    table = rejects_table(Provenance.of(batch))
    assert table["id"].to_pylist() == ["\\ud800"]


@beyond()
def test_such_a_row_is_set_aside_by_model_and_writer(column: pa.Array, shown: str) -> None:
    class Failing:
        def outputs(self, texts: pa.Array, spec: FeatureSpec) -> Outputs:
            none = [pa.array([], kind) for kind in (pa.list_(pa.int32()), pa.int32(), pa.bool_())]
            return Outputs(np.zeros(0, np.int64), none, {0: ("model", "RuntimeError", "it broke")})

        def identity(self, spec: FeatureSpec) -> dict[str, Any]:
            return {}

    bad = pa.array([b"\xff"]).view(pa.string())
    batch = pa.record_batch({"when": column, "text": pa.array(["a"]), "other": bad, ROW: pa.array([0])})
    batch = Provenance("/a", "s", id="when").attach(batch)
    spec = FeatureSpec(("input_ids",), text=("text",))
    (of_model,) = Provenance.of(featurize(batch, spec, Failing())).rejects  # type: ignore[arg-type]
    (of_writer,) = set_aside(batch, Provenance.of(batch), "parquet")[1].rejects
    assert (of_model.stage, of_writer.stage) == ("model", "write")
    assert shown in of_model.id
    assert of_model.id == of_writer.id


def test_such_a_row_is_shown_by_inspect(tmp_path: Path) -> None:
    pq.write_table(pa.table({"when": pa.array([10**7, 0], pa.date32())}), tmp_path / "part-00000-12345678.parquet")
    size = (tmp_path / "part-00000-12345678.parquet").stat().st_size
    record = SplitRecord(
        split="0" * 32,
        ordinal=0,
        splits=1,
        parts=(PartRecord("/a", 2, 2),),
        reading="r",
        shards=(FileRecord("part-00000-12345678.parquet", 2, size, "x"),),
        rejects_file=None,
        statistics=Statistics(),
        schema=(("when", "date32[day]"),),
        models=(),
        writer={"format": "parquet"},
    )
    filesystems.write_bytes(str(tmp_path / MANIFEST), Manifest((final_record(record),)).to_json())
    assert [str(row["when"]) for row in inspect(str(tmp_path)).sample] == ["29349-01-26", "1970-01-01"]
