"""The commit, cut off at every step and taken up again, on a local disk and on object stores."""

import copy
import itertools
import json
import shutil
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms.errors import OutputError, OutputExistsError, RejectLimitError
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.ledger import Ledger
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.records import SplitRecord
from distilbeam.transforms.output.shards import ShardSettings
from distilbeam.transforms.output.staging import OutputState
from distilbeam.transforms.provenance import ROW, Provenance
from distilbeam.transforms.rejects import parse_max_rejects
from distilbeam.transforms.storage import filesystems
from tests.outputs import (
    SHARDS,
    Killed,
    check_invariant,
    check_settled,
    commits,
    files,
    forget,
    mortal_process,
    put,
    resume,
    settled,
    stage_rest,
    visible_rows,
    without_number,
)
from tests.plans import Plan, s3_bucket


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(lines=21)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", "memory", pytest.param("s3", marks=pytest.mark.slow)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    bucket = request.getfixturevalue("bucket") if request.param == "s3" else "memory:/"
    url = f"{bucket}/{uuid.uuid4().hex}"
    yield url
    forget(url)


@pytest.fixture
def dying() -> Iterator[Callable[[int], None]]:
    """Lets the process die at a call to the store, from 0; a negative number lets it live."""
    with mortal_process() as die_at:
        yield die_at


@pytest.fixture(scope="module")
def clean(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An output that nothing has disturbed."""
    output = str(tmp_path_factory.mktemp("clean"))
    commit(output, plan.write_all(output, SHARDS))
    assert commits(output) == [1]
    return settled(output)


def finished(output: str, settings: tuple[Any, ...], shards: ShardSettings, plan: Plan) -> Collection[str]:
    """Ids of the splits that a second run would not read."""
    return Ledger(output, settings, shards, resume=True).finished(plan.splits)


def test_the_plan_has_what_can_go_wrong(plan: Plan, clean: dict[str, bytes]) -> None:
    assert len(plan.splits) == 3
    assert any(path.endswith("-001.parquet") for path in clean)
    assert sum(path.startswith("_rejects") for path in clean) == 3


@dataclass
class Job:
    """A job, and the output that it finds."""

    before: tuple[Plan, ShardSettings] | None
    after: Plan
    shards: ShardSettings
    if_exists: str

    def stage(self, output: str) -> list[SplitRecord]:
        if self.if_exists == "resume":
            return stage_rest(output, self.after, self.shards)[0]
        return self.after.write_all(output, self.shards)

    def run_again(self, output: str, call: int) -> None:
        """What a user does after a crash: the same command, or one that resumes."""
        if self.if_exists == "overwrite" and call % 2:
            base = begin(output, "overwrite")
            commit(output, self.stage(output), if_exists="overwrite", base=base)
            return
        try:
            resume(output, self.after, self.shards)
        except OutputExistsError:
            assert self.if_exists == "overwrite"
            assert not OutputState.read(output).unfinished
            commit(output, self.stage(output), if_exists="overwrite")


def regrouped(plan: Plan, order: list[int]) -> Plan:
    """Some splits of a plan, in another order."""
    plan = copy.copy(plan)
    total = len(order)
    plan.batches = [
        [replace(Provenance.of(batch), ordinal=ordinal, splits=total).attach(batch) for batch in plan.batches[at]]
        for ordinal, at in enumerate(order)
    ]
    plan.splits = [replace(plan.splits[at], ordinal=ordinal, splits=total) for ordinal, at in enumerate(order)]
    everything = pa.Table.from_batches([batch for batches in plan.batches for batch in batches])
    plan.table = everything.drop_columns([ROW, "secret"]).replace_schema_metadata(None)
    return plan


def _two_files() -> Plan:
    return Plan(files=2, lines=9, parts_per_split=1)


JOBS: dict[str, Callable[[], Job]] = {
    "first": lambda: Job(None, Plan(lines=21), SHARDS, "error"),
    "other settings": lambda: Job(
        (Plan(lines=9, settings={"model": "other"}), SHARDS), Plan(lines=21), SHARDS, "overwrite"
    ),
    "other shards": lambda: Job((Plan(lines=15), SHARDS), Plan(lines=15), ShardSettings(max_bytes=2000), "overwrite"),
    "other splits": lambda: Job((Plan(lines=15), SHARDS), Plan(lines=15, lines_per_part=5), SHARDS, "overwrite"),
    # A third file comes first in the plan, and one of the old ones is half gone.
    "grown": lambda: Job(
        (_two_files(), SHARDS),
        regrouped(Plan(files=3, lines=9, parts_per_split=1), [4, 5, 0, 1, 2]),
        SHARDS,
        "resume",
    ),
    "shrunk": lambda: Job((_two_files(), SHARDS), regrouped(_two_files(), [3, 0]), SHARDS, "resume"),
}


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", JOBS)
def test_cut_off_at_every_call_to_the_store(output: str, name: str, step: int, dying: Callable[[int], None]) -> None:
    if output.startswith("s3://"):  # each cut takes a second
        step = {5: 29, 1: 31}[step]
    job = JOBS[name]()
    if job.before:
        commit(output, job.before[0].write_all(output, job.before[1]))
    base = begin(output, job.if_exists)
    records = job.stage(output)
    start = files(output)
    commit(output, records, if_exists=job.if_exists, base=base)
    wanted, numbers = settled(output), commits(output)
    check_settled(output)
    assert visible_rows(output) == job.after.rows
    assert numbers == ([1, 2] if job.before else [1])
    for call in itertools.count(0, step):
        put(output, start)
        dying(call)
        try:
            commit(output, records, if_exists=job.if_exists, base=base)
        except Killed:
            dying(-1)
        else:
            dying(-1)
            break
        check_invariant(output)
        cut = files(output)
        # The runner tries the same commit again, or the user the same job.
        commit(output, records, if_exists=job.if_exists, base=base)
        assert settled(output) == wanted
        assert commits(output) == numbers
        put(output, cut)
        job.run_again(output, call)
        assert settled(output) == wanted
        assert commits(output) == numbers
    assert call > 10


@pytest.mark.parametrize("seed", range(12))
def test_cut_off_twice_and_replaced_by_another_job(tmp_path: Path, seed: int, dying: Callable[[int], None]) -> None:
    """Two commits that lead elsewhere are cut off one after the other; the third takes both away."""
    random = Random(seed)
    output = f"memory://{uuid.uuid4().hex}"
    commit(output, Plan(lines=9).write_all(output, SHARDS))
    for lines in (15, 12):
        records = Plan(lines=lines, settings={"model": str(lines)}).write_all(output, SHARDS)
        dying(random.randrange(30))
        with pytest.raises(Killed):
            commit(output, records, if_exists="overwrite")
        dying(-1)
        check_invariant(output)
    after = Plan(lines=21)
    commit(output, after.write_all(output, SHARDS), if_exists="overwrite")
    check_settled(output)
    assert visible_rows(output) == after.rows
    number = load_manifest(output).commit
    resume(output, after)
    assert commits(output) == sorted({1, number, *_finished_before(output, number)})
    forget(output)


def _finished_before(output: str, number: int) -> list[int]:
    """Numbers of the commits that led to one, by the entries themselves."""
    found, chain = files(output), []
    while number:
        chain.append(number)
        number = json.loads(found[f"_distilbeam/history/{number:06d}.json"])["base"]
    return chain


def test_a_vanished_shard_is_written_again(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    commit(output, plan.write_all(output, SHARDS))
    lost = next(path for path in clean if path.endswith("-001.parquet"))
    filesystems.delete(filesystems.join(output, lost))
    assert resume(output, plan) == 1
    assert commits(output) == [1, 2]
    assert without_number(settled(output)) == clean
    assert resume(output, plan) == 0
    assert commits(output) == [1, 2]


def test_staged_work_that_is_not_used_is_told(tmp_path: Path, plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    output = str(tmp_path)
    plan.write_all(output, SHARDS)
    begin(output, "resume")
    assert not caplog.messages
    for if_exists in ("error", "overwrite"):
        begin(output, if_exists)
        (told,) = caplog.messages
        assert f"{len(plan.splits)} finished splits of a job that did not end" in told
        caplog.clear()


def test_a_cut_shard_is_written_again(tmp_path: Path, plan: Plan, clean: dict[str, bytes]) -> None:
    output = str(tmp_path)
    plan.write_all(output, SHARDS)
    staged = next(tmp_path.glob("_distilbeam/staging/*-000.parquet"))
    staged.write_bytes(staged.read_bytes()[:-1])
    assert resume(output, plan) == 1
    assert settled(output) == clean


def test_attempts_side_by_side(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    """A split written twice at once, as runners do: whichever record arrives, its files are there."""
    first, second = plan.write_all(output, SHARDS), plan.write_all(output, SHARDS)
    commit(output, [first[0], second[1], first[2]])
    assert settled(output) == clean


def test_leftovers_of_dead_attempts_are_removed(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    Plan(lines=11, settings={"model": "other"}).write_all(output)
    filesystems.write_bytes(filesystems.join(output, "_distilbeam/staging/half.parquet"), b"PAR1")
    commit(output, plan.write_all(output, SHARDS))
    assert settled(output) == clean


def test_resume_after_a_change_of_mind(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    """Splits staged with other settings are neither used nor in the way."""
    Plan(lines=21, settings={"model": "other"}).write_all(output, SHARDS)
    plan.write(output, 1, SHARDS)
    assert resume(output, plan) == 2
    assert settled(output) == clean


def test_other_shard_sizes_are_another_output(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    with pytest.raises(OutputExistsError, match="`max_shard_bytes` was 700, is"):
        finished(output, (plan.settings,), ShardSettings(), plan)
    commit(output, plan.write_all(output), if_exists="overwrite")
    check_settled(output)
    assert commits(output) == [1, 2]
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
    with pytest.raises(OutputExistsError, match=r"other settings of the input \(`text`, `keep`, `nulls`"):
        resume(output, other)
    with pytest.raises(OutputExistsError, match="other settings of the input"):
        commit(output, other.write_all(output, SHARDS), if_exists="resume")
    assert resume(output, plan) == 0
    assert settled(output) == clean
    # An overwrite that was cut off amid its commit can be resumed.
    records = other.write_all(output, SHARDS)
    for call in itertools.count():
        dying(call)
        with pytest.raises(Killed):
            commit(output, records, if_exists="overwrite")
        dying(-1)
        if commits(output) == [1, 2]:
            break
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


def test_the_output_is_a_file(tmp_path: Path, plan: Plan) -> None:
    (tmp_path / "out").write_bytes(b"x")
    with pytest.raises(OutputError, match="is a file"):
        OutputState.read(str(tmp_path / "out"))


def test_staged_files_taken_away(tmp_path: Path, plan: Plan) -> None:
    records = plan.write_all(tmp_path)
    shutil.rmtree(tmp_path / "_distilbeam")
    with pytest.raises(OutputError, match="another job"):
        commit(str(tmp_path), records)
    assert not list(tmp_path.glob("features/*.parquet"))


def test_too_many_rejects_leave_nothing_visible(output: str, plan: Plan, clean: dict[str, bytes]) -> None:
    records = plan.write_all(output, SHARDS)
    with pytest.raises(RejectLimitError, match="more than the 1% that `max_rejects`"):
        commit(output, records, limit=parse_max_rejects("1%"))
    assert visible_rows(output) == []
    assert resume(output, plan) == 0
    assert settled(output) == clean


def test_memory_store_is_really_used() -> None:
    assert isinstance(fsspec.filesystem("memory"), MemoryFileSystem)
