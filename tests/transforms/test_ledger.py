"""What a ledger plans against an output: what stands, what is read, what is refused."""

from __future__ import annotations

import io
import json
import pickle
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms.documents import _Plan, _Read
from distilbeam.transforms.errors import InputError, OutputError, OutputExistsError, SettingsError
from distilbeam.transforms.features import WriteFeatures, _Begin, _Commit, _WriteSplits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.output.increments import Changes
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.rejects import RejectLimit
from distilbeam.transforms.storage import filesystems
from tests.plans import s3_bucket
from tests.recurring import Folder, Killed, forget, ids, rejects, run, snapshot

ROOT = "memory://ledger"
OUT = f"{ROOT}/out"


@pytest.fixture
def folder() -> Iterator[Folder]:
    forget(ROOT)
    folder = Folder(f"{ROOT}/in")
    folder.put("a", ["a1", "a2"])
    folder.put("b", ["b1", "!b2", "b3"])
    yield folder
    forget(ROOT)


def model(weights: str) -> Callable[[], dict[str, Any]]:
    """What a worker tells of a model whose name and settings stay the same."""
    return lambda: {
        "id": "m",
        "revision": None,
        "weights_sha256": weights,
        "tokenizer_sha256": "t",
        "settings": SETTINGS,
        "effective": {},
        "compute": None,
        "version": "0",
    }


SETTINGS = {"model": "m", "features": []}


class Job:
    """The steps of a pipeline without a model, of which a runner may do Plan and Begin in any order."""

    def __init__(self, folder: str, if_exists: str, *, incremental: bool, split_bytes: int) -> None:
        self.settings = ReadSettings(path=folder, split_bytes=split_bytes)
        self.if_exists = if_exists
        self.ledger = WriteFeatures(OUT, if_exists=if_exists).ledger(incremental=incremental)

    def plan(self) -> list[Any]:
        return _passed_on(_Plan(self.settings, self.ledger).process(None))

    def work(self, planned: list[Any]) -> dict[str, Any]:
        """All that comes after Plan; gives the summary."""
        limit = RejectLimit()
        (base,) = _passed_on(_Begin(OUT, self.if_exists, uuid.uuid4().hex).process(None))
        batches = [batch for split in planned for batch in _Read(self.settings, self.ledger).process(split)]
        writing = _WriteSplits(OUT, self.ledger.shards, limit)
        writing.setup()
        records = _passed_on(record for batch in batches for record in writing.process(batch, base))
        (summary,) = _Commit(OUT, self.if_exists, limit).process(records, base)
        return summary


def _passed_on(elements: Iterable[Any]) -> list[Any]:
    """The elements as the next worker has them."""
    return list(pickle.loads(pickle.dumps(list(elements))))


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_new_file_among_a_thousand_is_the_only_one_opened(
    folder: Folder, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(998):
        folder.put(f"old-{number:03}", [f"{number}"])
    splits = 1000 if apart else 1
    assert run(folder.url, OUT, incremental=apart).plan == (splits, 0)
    folder.put("new", ["n1", "n2"])
    touched: list[str] = []
    opened, fetched = MemoryFileSystem._open, MemoryFileSystem.cat_file

    def note(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        touched.append(path)
        return opened(self, path, *args, **kwargs)

    def note_cat(self: Any, path: str, *args: Any, **kwargs: Any) -> Any:
        touched.append(path)
        return fetched(self, path, *args, **kwargs)

    monkeypatch.setattr(MemoryFileSystem, "_open", note)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", note_cat)
    ran = run(folder.url, OUT)
    assert ran.plan == (splits + 1, splits)
    assert ran.read == {folder.path("new"): 2}
    assert {path.rpartition("/")[2] for path in touched if "/in/" in path} == {"new.jsonl"}
    assert ran.changes == Changes(1000, 1, 0, 0, splits, 1, 0)
    monkeypatch.undo()
    assert ids(OUT) == folder.rows
    before = snapshot(OUT)
    assert run(folder.url, OUT).plan == (splits + 1, splits + 1)
    assert snapshot(OUT) == before


def test_only_the_ranges_written_with_a_changed_file_are_read_again(folder: Folder) -> None:
    """Of a plan that groups files, a split of unchanged files stands even where its neighbour has to go."""
    folder.put("b", [f"b{number}" if number % 4 else f"!{number}" for number in range(60)])
    run(folder.url, OUT, incremental=False, split_bytes=500)
    parts = [record.parts for record in load_manifest(OUT).records]
    shared = [each for each in parts if {part.source for part in each} == {folder.path("a"), folder.path("b")}]
    assert len(shared) == 1
    assert len(parts) > 2
    read_with_a = sum(part.seen for part in shared[0] if part.source == folder.path("b"))
    folder.put("a", ["a3"])
    ran = run(folder.url, OUT, split_bytes=500)
    assert ran.read == {folder.path("a"): 1, folder.path("b"): read_with_a}
    assert ran.plan == (len(parts) + 1, len(parts) - 1)
    assert (ids(OUT), rejects(OUT)) == (folder.rows, folder.bad)
    assert all(len(record.parts) == 1 for record in load_manifest(OUT).records)


def test_a_kept_split_whose_file_is_lost_is_read_again(folder: Folder) -> None:
    run(folder.url, OUT)
    shard = load_manifest(OUT).records[1].shards[0]
    filesystems.delete(filesystems.join(OUT, shard.path))
    assert run(folder.url, OUT).read == {folder.path("b"): 3}
    assert ids(OUT) == folder.rows


def test_begins_are_counted_and_told(folder: Folder) -> None:
    with pytest.raises(Killed):
        run(folder.url, OUT, die_after=1)
    ledger = WriteFeatures(OUT, if_exists="resume").ledger(incremental=True)
    wanted = ReadSettings(path=folder.url)
    plan = ledger.plan(wanted)
    assert [finished for _, finished in plan] == [True, False]
    ledger.begin(plan[1][0].id)  # by a process that has died since
    attempts = []
    for element in plan:
        notes = [Provenance.of(batch) for batch in _Read(wanted, ledger).process(element)]
        assert notes
        attempts.append({note.attempt for note in notes if note})
    assert attempts == [{1}, {2}]
    assert ledger.begin(plan[1][0].id) == 1, "the second attempt has ended"
    run(folder.url, OUT)
    assert not [url for url in snapshot(OUT) if "attempts" in url]


def test_first_runs_count_begins_too(folder: Folder) -> None:
    ledger = WriteFeatures(OUT).ledger()
    wanted = ReadSettings(path=folder.url)
    ((split, finished),) = ledger.plan(wanted)
    assert not finished
    assert [ledger.begin(split.id) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("mode", ["incremental", "resume", "overwrite"])
def test_a_commit_between_plan_and_begin_is_not_undone(folder: Folder, mode: str) -> None:
    """The plan of this job knows nothing of what another one has committed since, though its Begin does."""
    how: dict[str, Any] = {"incremental": mode == "incremental"}
    if_exists = "overwrite" if mode == "overwrite" else "resume"
    run(folder.url, OUT, if_exists=if_exists, split_bytes=20, **how)
    folder.put("c", ["c1"])
    job = Job(folder.url, if_exists, split_bytes=20, **how)
    planned = job.plan()
    folder.put("d", ["d1", "d2", "d3"])
    run(folder.url, OUT, if_exists=if_exists, split_bytes=20, **how)
    with pytest.raises(OutputError, match="another job has committed"):
        job.work(planned)
    assert load_manifest(OUT).commit == 2
    assert ids(OUT) == folder.rows
    folder.put("d", ["d4"])
    assert job.work(job.plan())["commit"] == 3
    assert ids(OUT) == folder.rows


def test_only_the_present_plan_tells_what_was_seen(folder: Folder) -> None:
    """A record that is staged or committed says nothing of the plan that it was made for."""
    run(folder.url, OUT)
    folder.put("c", ["c1"])
    folder.put("d", ["d1"])
    with pytest.raises(Killed):
        run(folder.url, OUT, die_after=1)
    plan = WriteFeatures(OUT, if_exists="resume").ledger(incremental=True).plan(ReadSettings(path=folder.url))
    assert [(finished, split.base) for split, finished in plan] == [(number < 3, (1, 1)) for number in range(4)]
    written = [url for url in snapshot(OUT) if url.endswith(".json") and "/history/" not in url]
    assert len(written) == 2
    assert not any(b'"base"' in filesystems.read_bytes(url) for url in written)
    run(folder.url, OUT)
    assert ids(OUT) == folder.rows
    assert run(folder.url, OUT).plan == (4, 4)


@pytest.mark.parametrize("incremental", [True, False])
def test_other_settings_are_refused_or_start_anew_in_one_commit(folder: Folder, incremental: bool) -> None:
    run(folder.url, OUT, incremental=incremental)
    before = snapshot(OUT)
    with pytest.raises(OutputExistsError, match=r"other settings of the input \(`text`, `keep`"):
        run(folder.url, OUT, incremental=incremental, nulls="keep")
    assert snapshot(OUT) == before
    with pytest.raises(Killed):
        run(folder.url, OUT, incremental=incremental, if_changed="overwrite", nulls="keep", die_after=0)
    assert ids(OUT) == folder.rows
    ran = run(folder.url, OUT, incremental=incremental, if_changed="overwrite", nulls="keep")
    assert ran.read.total() == 5
    assert ids(OUT) == folder.rows
    assert load_manifest(OUT).reading == ReadSettings(path="x", nulls="keep").digest
    assert not run(folder.url, OUT, incremental=incremental, if_changed="overwrite", nulls="keep").read


def test_changed_weights_are_noticed_before_anything_is_read(folder: Folder) -> None:
    said = {"settings": [SETTINGS]}
    run(folder.url, OUT, models=[model("one")], **said)
    folder.put("c", ["c1"])
    ledger = WriteFeatures(OUT, if_exists="resume").ledger(SETTINGS, incremental=True, models=[model("two")])
    with pytest.raises(OutputExistsError, match="another model: its weights or tokenizer differ"):
        ledger.plan(ReadSettings(path=folder.url))
    # A start that is cut off goes on where it was, though the committed splits have the same names.
    with pytest.raises(Killed):
        run(folder.url, OUT, if_changed="overwrite", models=[model("two")], die_after=1, **said)
    assert load_manifest(OUT).models[0]["weights_sha256"] == "one"
    ran = run(folder.url, OUT, if_changed="overwrite", models=[model("two")], **said)
    assert ran.plan == (3, 1)
    assert {entry["weights_sha256"] for record in load_manifest(OUT).records for entry in record.models} == {"two"}
    assert ids(OUT) == folder.rows


def test_splits_staged_by_changed_weights_are_not_used(folder: Folder) -> None:
    with pytest.raises(Killed):
        run(folder.url, OUT, settings=[SETTINGS], models=[model("one")], die_after=1)
    ran = run(folder.url, OUT, settings=[SETTINGS], models=[model("two")])
    assert ran.plan == (2, 0)
    assert ids(OUT) == folder.rows


def test_another_input_is_refused_or_replaces(folder: Folder) -> None:
    run(folder.url, OUT)
    other = Folder(f"{ROOT}/other")
    other.put("x", ["x1"])
    with pytest.raises(OutputExistsError, match="another input: none of its 2 files"):
        run(other.url, OUT)
    run(other.url, OUT, if_changed="overwrite")
    assert ids(OUT) == ["x1"]
    other.remove("x")
    with pytest.raises(InputError, match="no file matches"):
        run(other.url, OUT)
    assert ids(OUT) == ["x1"]


def test_overwrite_starts_anew_file_by_file(folder: Folder) -> None:
    run(folder.url, OUT)
    ran = run(folder.url, OUT, if_exists="overwrite")
    assert ran.read.total() == 5
    assert ran.plan == (2, 0)


def test_a_state_must_be_an_output_of_the_same_settings(folder: Folder) -> None:
    day = [f"{ROOT}/day-{number}" for number in range(3)]
    with pytest.raises(InputError, match=r"`since` is 'memory://ledger/day-0', which holds no finished output"):
        run(folder.url, day[1], since=day[0])
    run(folder.url, day[0], settings=[SETTINGS], models=[model("one")])
    with pytest.raises(OutputExistsError, match=r"day-0', was made with other settings of the input"):
        run(folder.url, day[1], since=day[0], settings=[SETTINGS], models=[model("one")], nulls="keep")
    with pytest.raises(OutputExistsError, match=r"day-0', was made with other settings \(`model` was 'm', is 'n'\)"):
        run(folder.url, day[1], since=day[0], settings=[{**SETTINGS, "model": "n"}])
    with pytest.raises(OutputExistsError, match=r"day-0', was made by another model: its weights"):
        run(folder.url, day[1], since=day[0], settings=[SETTINGS], models=[model("two")])
    ran = run(folder.url, day[1], since=day[0], if_changed="overwrite", settings=[SETTINGS], models=[model("two")])
    assert ran.read.total() == 5
    assert ids(day[1]) == folder.rows
    ran = run(folder.url, day[2], since=day[1], settings=[SETTINGS], models=[model("two")])
    assert not ran.read
    assert ids(day[2]) == []
    assert load_manifest(day[2]).models[0]["weights_sha256"] == "two"


def test_a_day_can_be_run_again_and_grow(folder: Folder) -> None:
    run(folder.url, f"{ROOT}/day-0")
    folder.put("c", ["c1"])
    assert ids_of_day(folder) == ["c1"]
    before = snapshot(f"{ROOT}/day-1")
    assert ids_of_day(folder) == ["c1"]
    assert snapshot(f"{ROOT}/day-1") == before
    folder.put("d", ["d1"])
    folder.put("a", ["a9"])
    assert ids_of_day(folder) == ["a9", "c1", "d1"]
    # Without the state, the folder is to hold all of the input.
    run(folder.url, f"{ROOT}/day-1")
    assert ids(f"{ROOT}/day-1") == folder.rows


def ids_of_day(folder: Folder) -> list[str]:
    run(folder.url, f"{ROOT}/day-1", since=f"{ROOT}/day-0")
    return ids(f"{ROOT}/day-1")


@pytest.mark.slow
def test_days_on_s3(tmp_path: Path) -> None:
    with s3_bucket() as bucket:
        folder = Folder(f"{bucket}/in")
        folder.put("a", ["a1", "a2"])
        run(folder.url, f"{bucket}/1")
        folder.put("a", ["a1", "a2"])  # equal bytes have an equal ETag
        folder.put("b", ["b1"])
        assert run(folder.url, f"{bucket}/2", since=f"{bucket}/1").read == {folder.path("b"): 1}
        filesystems.delete(f"{bucket}/1")
        folder.put("b", ["b2"])
        folder.put("c", ["c1", "!c2"])
        folder.remove("a")
        ran = run(folder.url, f"{bucket}/3", since=f"{bucket}/2")
        assert ran.read == {folder.path("b"): 1, folder.path("c"): 2}
        assert ran.changes == Changes(0, 1, 1, 1, 0, 2, 0)
        assert (ids(f"{bucket}/3"), rejects(f"{bucket}/3")) == (["b2", "c1"], [(folder.path("c"), 2)])
        run(folder.url, f"{bucket}/all")
        folder.remove("b")
        run(folder.url, f"{bucket}/all")
        assert ids(f"{bucket}/all") == folder.rows


@pytest.mark.parametrize(
    ("if_exists", "said", "told"),
    [
        ("error", {"incremental": True}, "set `if_exists='resume'`"),
        ("error", {"since": "x"}, "set `if_exists='resume'`"),
        ("resume", {"if_changed": "overwrite"}, "which replaces nothing"),
        ("resume", {"if_changed": "resume"}, "must be one of error, overwrite"),
        ("resume", {"since": "memory://ledger/out/"}, "the same folder"),
    ],
)
def test_contradictions(if_exists: str, said: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        WriteFeatures(OUT, if_exists=if_exists).ledger(**said)


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(**columns: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


OLD_LINES = lines({"id": "a", "text": "t", "n": 1, "x": 0.5, "deep": {"k": 1, "l": [1]}})
OLD_PARQUET = parquet(id=["a"], text=["t"], n=pa.array([1], pa.int64()), x=pa.array([0.5], pa.float64()))


@pytest.mark.parametrize(
    ("name", "old", "new", "row"),
    [
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t"}), {"n": None, "x": None}),
        ("jsonl", OLD_LINES, lines({"text": "t", "x": 2, "n": None, "id": "b"}), {"n": None, "x": 2.0}),
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t", "deep": {"l": []}}), {"deep": {"k": None, "l": []}}),
        ("jsonl", OLD_LINES, lines({"id": "b", "text": None}), {}),
        ("jsonl", OLD_LINES, b"\n", {}),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], n=pa.array([7], pa.int16())), {"n": 7, "x": None}),
        ("parquet", OLD_PARQUET, parquet(x=pa.array([1], pa.int32()), text=["t"], id=["b"]), {"n": None, "x": 1.0}),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], n=[2.0]), {"n": 2, "x": None}),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], n=[1.5]), {}),  # a reject, since it is no integer
        ("csv", b"id,text,n\na,t,1\n", b"text,id\nt,b\n", {"n": None}),
    ],
)
def test_new_files_are_read_into_the_columns_of_before(name: str, old: bytes, new: bytes, row: dict[str, Any]) -> None:
    forget(ROOT)
    filesystems.write_bytes(f"{ROOT}/in/a.{name}", old)
    run(f"{ROOT}/in", OUT)
    schema = load_manifest(OUT).schema
    filesystems.write_bytes(f"{ROOT}/in/b.{name}", new)
    ran = run(f"{ROOT}/in", OUT)
    assert ran.plan == (2, 1)
    assert load_manifest(OUT).schema == schema
    shards = [filesystems.read_bytes(f"{OUT}/{shard.path}") for shard in load_manifest(OUT).shards]
    tables = [pq.read_table(pa.BufferReader(shard)) for shard in shards]
    assert len({table.schema for table in tables}) == 1
    found = [each for table in tables for each in table.to_pylist() if each["id"] == "b"]
    assert [{key: each[key] for key in row} for each in found] == ([row] if row else [])


@pytest.mark.parametrize(
    ("name", "old", "new", "told"),
    [
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t", "more": 1}), "b.jsonl' has a column 'more' that the"),
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t", "n": "1"}), "'n' is int64 in the output, but string"),
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t", "n": 1.5}), "'n' is int64 in the output, but double"),
        ("jsonl", OLD_LINES, lines({"id": "b", "text": "t", "deep": {"m": 1}}), "column 'deep' is struct"),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], n=["1"]), "'n' is int64 in the output, but string"),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], n=[True]), "'n' is int64 in the output, but bool"),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=[1]), "column 'text' is string in the output, but int64"),
        ("parquet", OLD_PARQUET, parquet(id=["b"], text=["t"], more=[1]), "b.parquet' has a column 'more' that the"),
        ("csv", b"id,text,n\na,t,1\n", b"id,text,n,more\nb,t,1,2\n", "b.csv' has a column 'more' that the"),
    ],
)
def test_new_files_that_do_not_fit_are_refused(name: str, old: bytes, new: bytes, told: str) -> None:
    forget(ROOT)
    filesystems.write_bytes(f"{ROOT}/in/a.{name}", old)
    run(f"{ROOT}/in", OUT)
    before = snapshot(OUT)
    filesystems.write_bytes(f"{ROOT}/in/b.{name}", new)
    with pytest.raises(InputError, match=told) as raised:
        run(f"{ROOT}/in", OUT)
    assert "overwrite" in str(raised.value)
    assert "keep" in str(raised.value)
    assert snapshot(OUT) == before


def test_columns_that_are_not_asked_for_may_differ() -> None:
    forget(ROOT)
    filesystems.write_bytes(f"{ROOT}/in/a.jsonl", OLD_LINES)
    run(f"{ROOT}/in", OUT, keep=["id"])
    filesystems.write_bytes(f"{ROOT}/in/b.jsonl", lines({"id": "b", "text": "t", "n": "one", "more": 1}))
    run(f"{ROOT}/in", OUT, keep=["id"])
    assert ids(OUT) == ["a", "b"]


def test_partitions_of_new_folders() -> None:
    forget(ROOT)
    filesystems.write_bytes(f"{ROOT}/in/day=1/a.jsonl", lines({"id": "a", "text": "t"}))
    run(f"{ROOT}/in", OUT)
    filesystems.write_bytes(f"{ROOT}/in/day=2/a.jsonl", lines({"id": "b", "text": "t"}))
    run(f"{ROOT}/in", OUT)
    shards = [filesystems.read_bytes(f"{OUT}/{shard.path}") for shard in load_manifest(OUT).shards]
    rows = [row for shard in shards for row in pq.read_table(pa.BufferReader(shard)).to_pylist()]
    assert {row["id"]: row["day"] for row in rows} == {"a": "1", "b": "2"}
    filesystems.write_bytes(f"{ROOT}/in/day=3/hour=4/a.jsonl", lines({"id": "c", "text": "t"}))
    with pytest.raises(InputError, match="has a column 'hour' that the output does not have"):
        run(f"{ROOT}/in", OUT)


def test_bad_new_files_are_rejects_where_that_is_asked_for() -> None:
    forget(ROOT)
    filesystems.write_bytes(f"{ROOT}/in/a.parquet", OLD_PARQUET)
    run(f"{ROOT}/in", OUT, bad_files="reject")
    filesystems.write_bytes(f"{ROOT}/in/b.parquet", b"no parquet")
    ran = run(f"{ROOT}/in", OUT, bad_files="reject")
    assert ran.plan == (2, 1)
    assert ids(OUT) == ["a"]
    assert load_manifest(OUT).rejects == 1
    assert run(f"{ROOT}/in", OUT, bad_files="reject").plan == (2, 2)
