"""The commit, cut off at every step and taken up again, on a local disk and on an object store."""

import itertools
import os
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms import filesystems
from distilbeam.transforms.commit import check_records, commit, first_lines
from distilbeam.transforms.errors import OutputError, OutputExistsError, RejectLimitError
from distilbeam.transforms.ledger import Ledger
from distilbeam.transforms.manifest import SplitRecord, load_manifest
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.rejects import parse_max_rejects
from distilbeam.transforms.shards import ShardSettings
from distilbeam.transforms.staging import OutputState, finished_record
from tests.plans import Plan

SHARDS = ShardSettings(max_bytes=700)


class Killed(BaseException):
    """The process is gone: nothing that it does afterwards has an effect."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(lines=21)


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    forget(url)


def forget(url: str) -> None:
    filesystem, path = filesystems.resolve(url)
    if filesystem.exists(path):
        filesystem.rm(path, recursive=True)


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the process die at a call to the store, from 0; a negative number lets it live."""
    state = {"left": -1, "dead": False}

    def mortal(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if state["dead"] or state["left"] == 0:
                state["dead"] = True
                raise Killed
            state["left"] -= 1
            return function(*args, **kwargs)

        return call

    for name in ("cp_file", "rm_file", "pipe_file", "put_file", "cat_file", "find", "exists", "rm"):
        monkeypatch.setattr(MemoryFileSystem, name, mortal(getattr(MemoryFileSystem, name)))
    for module, name in ((os, "replace"), (shutil, "rmtree"), (Path, "unlink"), (os, "open")):
        monkeypatch.setattr(module, name, mortal(getattr(module, name)))
    monkeypatch.setattr(os, "fsync", mortal(lambda descriptor: None))  # slow, and of no use without a power cut

    def die_at(call: int) -> None:
        state.update(left=call, dead=False)

    die_at(-1)
    return die_at


def files(output: str) -> dict[str, bytes]:
    """All files, by path below the folder."""
    filesystem, root = filesystems.resolve(output)
    found = filesystem.find(root)
    return {name.removeprefix(root).lstrip("/"): filesystem.cat_file(name) for name in found}


def visible_rows(output: str) -> list[dict[str, Any]]:
    """Rows of all files that readers of the folder see; each must be whole."""
    tables = [
        pq.read_table(pa.BufferReader(data))
        for path, data in files(output).items()
        if not any(name[:1] in "_." for name in path.split("/"))
    ]
    return sorted((row for table in tables for row in table.to_pylist()), key=lambda row: row["id"])


def finished(output: str, settings: tuple[Any, ...], shards: ShardSettings, plan: Plan) -> Collection[str]:
    """Ids of the splits that a second run would not read."""
    return Ledger(output, settings, shards, resume=True).finished(plan.splits)


def resume(output: str, plan: Plan) -> int:
    """What a second run does; gives the number of splits that it had to do again."""
    done = finished(output, (plan.settings,), SHARDS, plan)
    state = OutputState.read(output)
    records = [
        finished_record(state, Provenance.of(plan.finished(split.ordinal)), SHARDS)
        if split.id in done
        else plan.write(output, split.ordinal, SHARDS)
        for split in plan.splits
    ]
    commit(output, records, if_exists="resume")
    return len(plan.splits) - len(done)


@pytest.fixture(scope="module")
def clean(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An output that nothing has disturbed."""
    output = str(tmp_path_factory.mktemp("clean"))
    commit(output, plan.write_all(output, SHARDS))
    return files(output)


def test_the_plan_has_what_can_go_wrong(plan: Plan, clean: dict[str, bytes]) -> None:
    assert len(plan.splits) == 3
    assert any(path.endswith("-001.parquet") for path in clean)
    assert sum(path.startswith("_rejects") for path in clean) == 3


def test_killed_at_every_step(output: str, plan: Plan, clean: dict[str, bytes], dying: Callable[[int], None]) -> None:
    redone = 0
    for call in itertools.count():
        records = plan.write_all(output, SHARDS)
        dying(call)
        try:
            commit(output, records)
        except Killed:
            pass
        else:
            dying(-1)
            assert files(output) == clean
            break
        dying(-1)
        rows = visible_rows(output)
        assert len({row["id"] for row in rows}) == len(rows)
        if "_distilbeam/manifest.json" in files(output):
            assert rows == plan.rows
        redone += resume(output, plan)
        assert files(output) == clean
        forget(output)
    assert call > 20
    assert redone == 0


def test_retried_by_the_runner_at_every_step(
    output: str, plan: Plan, clean: dict[str, bytes], dying: Callable[[int], None]
) -> None:
    """A runner calls the same commit again, with the same records."""
    for call in itertools.count(0, 3):
        records = plan.write_all(output, SHARDS)
        dying(call)
        try:
            commit(output, records)
        except Killed:
            dying(-1)
            commit(output, records)
            assert files(output) == clean
            forget(output)
        else:
            break
    dying(-1)
    commit(output, records)
    assert files(output) == clean


def test_overwrite_killed_at_every_step(
    output: str, plan: Plan, clean: dict[str, bytes], dying: Callable[[int], None]
) -> None:
    before = Plan(lines=9, settings={"model": "other"})
    for call in itertools.count(0, 3):
        commit(output, before.write_all(output, SHARDS))
        old = files(output)
        records = plan.write_all(output, SHARDS)
        dying(call)
        try:
            commit(output, records, if_exists="overwrite")
        except Killed:
            dying(-1)
            if "_distilbeam/intent.json" in files(output) or b"other" not in files(output)["_distilbeam/manifest.json"]:
                resume(output, plan)
            else:
                assert old.items() <= files(output).items()
                with pytest.raises(OutputExistsError, match="model was 'other', is 'tiny'"):
                    resume(output, plan)
                commit(output, plan.write_all(output, SHARDS), if_exists="overwrite")
            assert files(output) == clean
            forget(output)
        else:
            dying(-1)
            assert files(output) == clean
            break


def test_a_grown_input_killed_at_every_step(output: str, dying: Callable[[int], None]) -> None:
    """A third file comes first in the plan, and the last of the old ones is gone."""
    before, after = Plan(files=2, lines=9, parts_per_split=1), Plan(files=3, lines=9, parts_per_split=1)
    turned = [*after.splits[4:], *after.splits[:2]]
    for ordinal, split in enumerate(turned):
        at = after.splits.index(split)
        after.batches[at] = [
            replace(Provenance.of(batch), ordinal=ordinal, splits=4).attach(batch) for batch in after.batches[at]
        ]
    batches = [after.batches[after.splits.index(split)] for split in turned]
    after.splits = [replace(split, ordinal=ordinal, splits=4) for ordinal, split in enumerate(turned)]
    after.batches = batches
    wanted = sorted(
        (row for split in batches for batch in split for row in batch.drop_columns(["_row", "secret"]).to_pylist()),
        key=lambda row: row["id"],
    )
    for call in itertools.count(0, 3):
        commit(output, before.write_all(output, SHARDS))
        kept = {path for path in files(output) if path.startswith("part-")}
        dying(call)
        try:
            resume(output, after)
        except Killed:
            dying(-1)
            resume(output, after)
        else:
            break
        finally:
            dying(-1)
        assert visible_rows(output) == wanted
        manifest = load_manifest(output)
        assert set(files(output)) == {*manifest.files, "_distilbeam/manifest.json"}
        assert len(kept & manifest.files) == 2  # what was committed is not moved
        forget(output)
    assert visible_rows(output) == wanted


def test_a_vanished_shard_is_written_again(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    commit(output, plan.write_all(output, SHARDS))
    lost = next(path for path in clean if path.endswith("-001.parquet"))
    filesystems.delete(filesystems.join(output, lost))
    assert resume(output, plan) == 1
    assert files(output) == clean
    assert resume(output, plan) == 0


def test_a_cut_shard_is_written_again(tmp_path: Path, plan: Plan, clean: dict[str, bytes]) -> None:
    output = str(tmp_path)
    plan.write_all(output, SHARDS)
    staged = next(tmp_path.glob("_distilbeam/staging/*-000.parquet"))
    staged.write_bytes(staged.read_bytes()[:-1])
    assert resume(output, plan) == 1
    assert files(output) == clean


def test_attempts_side_by_side(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    """A split written twice at once, as runners do: whichever record arrives, its files are there."""
    first, second = plan.write_all(output, SHARDS), plan.write_all(output, SHARDS)
    commit(output, [first[0], second[1], first[2]])
    assert files(output) == clean


def test_leftovers_of_dead_attempts_are_removed(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    Plan(lines=11, settings={"model": "other"}).write_all(output)
    filesystems.write_bytes(filesystems.join(output, "_distilbeam/staging/half.parquet"), b"PAR1")
    commit(output, plan.write_all(output, SHARDS))
    assert files(output) == clean


def test_resume_after_a_change_of_mind(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    """Splits staged with other settings are neither used nor in the way."""
    Plan(lines=21, settings={"model": "other"}).write_all(output, SHARDS)
    plan.write(output, 1, SHARDS)
    assert resume(output, plan) == 2
    assert files(output) == clean


def test_other_shard_sizes_are_another_output(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    with pytest.raises(OutputExistsError, match="max_bytes was 700, is"):
        finished(output, (plan.settings,), ShardSettings(), plan)
    commit(output, plan.write_all(output), if_exists="overwrite")
    assert set(files(output)) == {*load_manifest(output).files, "_distilbeam/manifest.json"}
    assert visible_rows(output) == plan.rows


def test_another_input_is_no_resume(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    before = files(output)
    other = Plan(lines=21, lines_per_part=7)
    with pytest.raises(OutputExistsError, match="holds the output of another input"):
        finished(output, (other.settings,), SHARDS, other)
    assert files(output) == before


def test_other_weights_are_not_mixed(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    before = files(output)
    other = Plan(lines=21, weights="new").write_all(output, SHARDS)
    with pytest.raises(OutputExistsError, match="weights or tokenizer differ"):
        commit(output, other, if_exists="resume")
    with pytest.raises(OutputExistsError, match="already holds"):
        commit(output, other)
    assert before.items() <= files(output).items()


def test_other_settings_of_the_input_are_not_mixed(
    output: str, plan: Plan, clean: dict[str, bytes], dying: Callable[[int], None]
) -> None:
    commit(output, plan.write_all(output, SHARDS))
    other = Plan(lines=21, reading="other")
    with pytest.raises(OutputExistsError, match=r"other settings of the input \(text, keep, nulls"):
        resume(output, other)
    with pytest.raises(OutputExistsError, match="other settings of the input"):
        commit(output, other.write_all(output, SHARDS), if_exists="resume")
    assert resume(output, plan) == 0
    assert files(output) == clean
    # An overwrite that was cut off amid its commit can be resumed.
    records = other.write_all(output, SHARDS)
    dying(12)
    with pytest.raises(Killed):
        commit(output, records, if_exists="overwrite")
    dying(-1)
    assert "_distilbeam/intent.json" in files(output)
    with pytest.raises(OutputExistsError, match="other settings of the input"):
        resume(output, Plan(lines=21, reading="third"))
    resume(output, other)
    assert load_manifest(output).reading == "other"
    assert visible_rows(output) == plan.rows


@pytest.mark.parametrize("changed", [0, 1])
def test_every_model_of_a_chain_counts(tmp_path: Path, changed: int) -> None:
    """Features of the first model, made with other settings or weights, are no more reused than those of the last."""
    first, second = {"model": "one", "prefix": "a_"}, {"model": "two", "prefix": "b_"}
    chain = chained(Plan(lines=9), first, second)
    output = str(tmp_path)
    commit(output, chain.write_all(output, SHARDS))
    assert [model["settings"] for model in load_manifest(output).models] == [first, second]
    assert len(finished(output, (first, second), SHARDS, chain)) == len(chain.splits)
    settings = [first, second]
    settings[changed] = {**settings[changed], "model": "other"}
    for wanted in (tuple(settings), (second, first), (second,), (first,), ()):
        with pytest.raises(OutputExistsError, match="other settings"):
            finished(output, wanted, SHARDS, chain)
    weights = ["abc", "abc"]
    weights[changed] = "new"
    with pytest.raises(OutputExistsError, match="weights or tokenizer differ"):
        commit(output, chained(Plan(lines=9), first, second, weights).write_all(output, SHARDS), if_exists="resume")
    staged = str(tmp_path / "staged")
    chain.write_all(staged, SHARDS)
    assert not finished(staged, tuple(settings), SHARDS, chain)


def chained(plan: Plan, *settings: Any) -> Plan:
    """The plan, as if several models had seen it."""
    weights = settings[2] if len(settings) > 2 else ["abc", "abc"]
    models = tuple(
        {**plan.model, "settings": each, "weights_sha256": digest}
        for each, digest in zip(settings[:2], weights, strict=True)
    )
    plan.batches = [
        [replace(Provenance.of(batch), models=models).attach(batch) for batch in batches] for batches in plan.batches
    ]
    return plan


def test_mixed_precision_is_told(tmp_path: Path, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    """Machines that choose for themselves may choose differently."""
    records = plan.write_all(tmp_path)
    records[1] = Plan(lines=21, compute="bfloat16").write(tmp_path, 1)
    manifest = commit(str(tmp_path), records)
    computes = [
        {"stage": 0, "device": "cpu", "dtype": "float32", "threads": 1, "splits": 2},
        {"stage": 0, "device": "cpu", "dtype": "bfloat16", "threads": 1, "splits": 1},
    ]
    assert manifest.computes == load_manifest(str(tmp_path)).computes == computes
    (warning,) = caplog.messages
    assert "float32 on cpu (2 splits), bfloat16 on cpu (1 splits)" in warning
    caplog.clear()
    commit(str(tmp_path / "pure"), plan.write_all(tmp_path / "pure"))
    assert not caplog.messages


def test_a_manifest_cannot_have_foreign_files_deleted(tmp_path: Path, plan: Plan) -> None:
    output = tmp_path / "out"
    commit(str(output), plan.write_all(output, SHARDS))
    (tmp_path / "mine.parquet").write_bytes(b"x")
    (output / "_mine.parquet").write_bytes(b"x")
    manifest = output / "_distilbeam" / "manifest.json"
    old = load_manifest(str(output)).records[0].shards[0].path
    manifest.write_text(manifest.read_text().replace(old, "../mine.parquet", 1))
    (output / old).rename(output / "_mine2.parquet")
    commit(str(output), Plan(lines=9).write_all(output, SHARDS), if_exists="overwrite")
    assert (tmp_path / "mine.parquet").exists()
    assert (output / "_mine.parquet").exists()


def test_a_damaged_manifest_is_named(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "_distilbeam").mkdir()
    (tmp_path / "_distilbeam" / "manifest.json").write_text("{}")
    with pytest.raises(OutputError, match=r"manifest\.json.*damaged"):
        commit(str(tmp_path), plan.write_all(tmp_path), if_exists="overwrite")


def test_the_output_is_a_file(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "out").write_bytes(b"x")
    with pytest.raises(OutputError, match="is a file"):
        OutputState.read(str(tmp_path / "out"))


def test_staged_files_taken_away(tmp_path: Path, plan: Plan) -> None:
    records = plan.write_all(tmp_path)
    shutil.rmtree(tmp_path / "_distilbeam")
    with pytest.raises(OutputError, match="another job"):
        commit(str(tmp_path), records)
    assert not list(tmp_path.glob("*.parquet"))


def test_lines_before_each_part() -> None:
    plan = Plan(files=2, lines=23, lines_per_part=5, parts_per_split=3)
    records = [record_of(plan, ordinal) for ordinal in range(len(plan.splits))]
    before = first_lines(records)
    for split in plan.splits:
        for position, part in enumerate(split.parts):
            assert before[split.ordinal, position] == part.start - 1


def record_of(plan: Plan, ordinal: int) -> SplitRecord:
    output = f"memory://{uuid.uuid4().hex}"
    record = plan.write(output, ordinal)
    forget(output)
    return record


def test_records_that_are_no_plan(plan: Plan) -> None:
    records = [record_of(plan, ordinal) for ordinal in range(3)]
    assert check_records(records[::-1]) == records
    cases = [
        ([], "no batch reached"),
        (records[:2], "1 of 3 splits did not arrive complete: 2"),
        ([*records, records[1]], "1 of 3 splits arrived more than once: 1"),
        ([*records[:2], replace(records[2], splits=4)], "several plans"),
        ([*records, replace(records[2], ordinal=3)], "not in a plan of 3"),
        ([*records[:2], replace(records[2], shards=())], "split 2 read"),
        ([*records[:2], replace(records[2], rejects_file=replace(records[2].rejects_file, rows=9))], "9 set aside"),
        ([*records[:2], replace(records[2], schema=(("id", "int64"),))], "different columns"),
        ([*records[:2], replace(records[2], schema=records[2].schema[::-1])], "their order"),
        ([*records[:2], replace(records[2], models=({**plan.model, "weights_sha256": "x"},))], "different models"),
        ([*records[:2], replace(records[2], models=())], "different models"),
        ([*records[:2], replace(records[2], writer={})], "written with different settings"),
        ([*records[:2], replace(records[2], reading="x")], "read with different settings"),
    ]
    for wrong, message in cases:
        with pytest.raises(OutputError, match=message):
            check_records(wrong)
    elsewhere = {**plan.model, "compute": {"device": "cuda"}, "version": "1"}
    assert check_records([*records[:2], replace(records[2], models=(elsewhere,))])


def test_too_many_rejects_leave_nothing_visible(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    records = plan.write_all(output, SHARDS)
    with pytest.raises(RejectLimitError, match="more than max_rejects=1%"):
        commit(output, records, limit=parse_max_rejects("1%"))
    assert visible_rows(output) == []
    assert resume(output, plan) == 0
    assert files(output) == clean


def test_memory_store_is_really_used() -> None:
    assert isinstance(fsspec.filesystem("memory"), MemoryFileSystem)
