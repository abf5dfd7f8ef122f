"""Two jobs on one output: one commits, the other fails and says so, and the output is the winner's alone."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.errors import OutputError, OutputExistsError
from distilbeam.transforms.features import _WriteSplits
from distilbeam.transforms.output import commit as commit_module
from distilbeam.transforms.output.claims import Claim
from distilbeam.transforms.output.commit import begin, commit, was_overtaken
from distilbeam.transforms.output.history import load_entry
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.records import final_record
from distilbeam.transforms.output.staging import OutputState
from distilbeam.transforms.rejects import RejectLimit
from distilbeam.transforms.storage import conditional, filesystems
from tests.outputs import (
    SHARDS,
    check_invariant,
    check_settled,
    commits,
    files,
    forget,
    put,
    resume,
    settled,
    stage_rest,
    visible_rows,
)
from tests.plans import Plan, s3_bucket
from tests.schedules import scheduled

OTHER = {"model": "other"}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket() as url:
        yield url


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.slow)])
def output(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "out")
        return
    from moto.s3.responses import S3Response

    lock, put_object = threading.Lock(), S3Response.put_object

    def alone(self: Any) -> Any:  # moto compares and stores in two steps; S3 does both at once
        with lock:
            return put_object(self)

    monkeypatch.setattr(S3Response, "put_object", alone)
    url = f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"
    yield url
    forget(url)


@pytest.fixture(scope="module")
def two() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def outcome(work: Callable[[], object]) -> str:
    """Empty for success, else what the job fails with."""
    try:
        work()
    except OutputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("if_exists", ["error", "overwrite", "resume"])
@pytest.mark.parametrize("settings", ["same", "other"])
def test_two_jobs_that_commit_at_once(output: str, two: ThreadPoolExecutor, if_exists: str, settings: str) -> None:
    plans = Plan(lines=15), Plan(lines=15) if settings == "same" else Plan(lines=9, settings=OTHER)
    if if_exists != "error":
        # A job that resumes can only go on from its own settings.
        first = Plan(lines=15, files=1) if if_exists == "resume" else Plan(lines=12)
        if if_exists == "overwrite" or settings == "same":
            commit(output, first.write_all(output, SHARDS))
    before, number = files(output), len(commits(output))
    for turn in range(4):
        put(output, before)
        bases = [begin(output, if_exists) for _ in plans]
        staged = [plan.write_all(output, SHARDS) for plan in plans]
        barrier = threading.Barrier(2, timeout=60)

        def job(which: int, barrier: Any = barrier, bases: Any = bases, staged: Any = staged) -> str:
            barrier.wait()
            return outcome(lambda: commit(output, staged[which], if_exists=if_exists, base=bases[which]))

        told = list(two.map(job, range(2) if turn % 2 else [1, 0]))
        assert sorted(map(bool, told)) == [False, True], told
        assert f"another job has committed to {output!r}" in max(told)
        winner = plans[(told.index("") if turn % 2 else 1 - told.index(""))]
        check_invariant(output)
        assert visible_rows(output) == winner.rows
        assert load_manifest(output).commit == number + 1
        # The next run removes whatever the loser has left.
        resume(output, winner)
        check_settled(output)
        assert commits(output) == [*range(1, number + 2)]
        assert visible_rows(output) == winner.rows


def test_a_job_that_began_before_another_committed(output: str) -> None:
    slow, quick = Plan(lines=9), Plan(lines=15, settings=OTHER)
    base = begin(output, "error")
    records = slow.write_all(output, SHARDS)
    assert not was_overtaken(output, base)
    commit(output, quick.write_all(output, SHARDS), base=begin(output, "error"))
    assert was_overtaken(output, base)
    for if_exists in ("error", "overwrite", "resume"):
        with pytest.raises(OutputError, match="another job has committed"):
            commit(output, records, if_exists=if_exists, base=base)
    assert visible_rows(output) == quick.rows
    check_settled(output)


def test_equal_jobs_one_after_the_other(output: str) -> None:
    """The second began when the first had not committed; that both would write the same bytes changes nothing."""
    plan = Plan(lines=9)
    bases = [begin(output, "resume") for _ in range(2)]
    staged = [plan.write_all(output, SHARDS) for _ in range(2)]
    commit(output, staged[0], if_exists="resume", base=bases[0])
    with pytest.raises(OutputError, match="another job has committed"):
        commit(output, staged[1], if_exists="resume", base=bases[1])
    commit(output, staged[0], if_exists="resume", base=bases[0])  # as a runner repeats what it has no reply of
    assert commits(output) == [1]
    assert visible_rows(output) == plan.rows


@pytest.mark.parametrize("again", ["commit", "all"])
def test_a_job_that_is_begun_again_after_its_commit(output: str, again: str) -> None:
    """As runners do that have lost the reply: its own output does not refuse it, while that of others does."""
    plan = Plan(lines=9)
    records = plan.write_all(output, SHARDS)
    made = commit(output, records, base=begin(output, "error", "mine"))
    with pytest.raises(OutputExistsError, match="already holds an output"):
        begin(output, "error", "other")
    base = begin(output, "error", "mine")
    assert (base.seen, base.job) == ((1, 1), "mine")
    if again == "all":
        records = plan.write_all(output, SHARDS)
    assert commit(output, records, base=base) == made
    assert commits(output) == [1]
    assert visible_rows(output) == plan.rows
    check_settled(output)
    with pytest.raises(OutputExistsError, match="already holds an output"):
        commit(output, Plan(lines=12).write_all(output, SHARDS), base=base)
    assert visible_rows(output) == plan.rows


def test_the_same_commit_twice_at_once(output: str, two: ThreadPoolExecutor) -> None:
    """Runners may run one bundle on two workers; both then have the same records, and both may say that it is done."""
    plan = Plan(lines=15)
    commit(output, Plan(lines=12).write_all(output, SHARDS))
    before = files(output)
    done = 0
    for _ in range(4):
        put(output, before)
        base = begin(output, "overwrite")
        records = plan.write_all(output, SHARDS)
        barrier = threading.Barrier(2, timeout=60)

        def job(_: int, barrier: Any = barrier, records: Any = records, base: Any = base) -> str:
            barrier.wait()
            return outcome(lambda: commit(output, records, if_exists="overwrite", base=base))

        told = list(two.map(job, range(2)))
        assert "" in told, told
        done += told.count("")
        commit(output, records, if_exists="overwrite", base=base)
        check_settled(output)
        assert commits(output) == [1, 2]
        assert visible_rows(output) == plan.rows
    assert done >= 4


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 100))])
def test_the_same_commit_twice_in_any_order(tmp_path: Path, seed: int) -> None:
    output, plan = str(tmp_path / "out"), Plan(lines=15)
    commit(output, Plan(lines=12).write_all(output, SHARDS))
    base = begin(output, "overwrite")
    records = plan.write_all(output, SHARDS)

    def job() -> str:
        return outcome(lambda: commit(output, records, if_exists="overwrite", base=base))

    with scheduled(seed) as schedule:
        told = schedule.run([job, job])
    assert "" in told, told
    check_settled(output)
    assert commits(output) == [1, 2]
    assert visible_rows(output) == plan.rows
    assert commit(output, records, if_exists="overwrite", base=base) == load_manifest(output)


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 100))])
def test_two_jobs_in_any_order(tmp_path: Path, seed: int) -> None:
    output, plans = str(tmp_path / "out"), [Plan(lines=15), Plan(lines=9, settings=OTHER)]
    commit(output, Plan(lines=12).write_all(output, SHARDS))
    bases = [begin(output, "overwrite") for _ in plans]
    staged = [plan.write_all(output, SHARDS) for plan in plans]

    def job(which: int) -> str:
        return outcome(lambda: commit(output, staged[which], if_exists="overwrite", base=bases[which]))

    with scheduled(seed) as schedule:
        told = schedule.run([lambda: job(0), lambda: job(1)])
    assert sorted(map(bool, told)) == [False, True], told
    winner = plans[told.index("")]
    check_invariant(output)
    assert visible_rows(output) == winner.rows
    assert resume(output, winner) == 0
    check_settled(output)
    assert commits(output) == [1, 2]
    assert visible_rows(output) == winner.rows


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(n, marks=pytest.mark.slow) for n in range(20, 100))])
@pytest.mark.parametrize("kept", [True, False])
def test_jobs_that_begin_in_any_order(tmp_path: Path, seed: int, kept: bool) -> None:
    """One may take the other's commit, which is under way, for that of a dead job and replace it."""
    output, plans = str(tmp_path / "out"), [Plan(lines=15, settings=OTHER), Plan(lines=15)]
    before = Plan(lines=15) if kept else Plan(lines=12)
    commit(output, before.write_all(output, SHARDS))

    def work(plan: Plan) -> None:
        base = begin(output, "overwrite")
        commit(output, plan.write_all(output, SHARDS), if_exists="overwrite", base=base)

    def job(which: int) -> str:
        return outcome(lambda: work(plans[which]))

    with scheduled(seed) as schedule:
        told = schedule.run([lambda: job(0), lambda: job(1)])
    assert "" in told, told
    manifest = load_manifest(output)
    last = plans[0] if manifest.models[0]["settings"] == OTHER else plans[1]
    assert visible_rows(output) == last.rows, told
    resume(output, last)
    check_settled(output)
    assert visible_rows(output) == last.rows


def test_writing_into_a_staging_folder_that_another_job_has_removed(tmp_path: Path) -> None:
    output = str(tmp_path)
    slow, quick = Plan(lines=21), Plan(lines=9, settings=OTHER)
    base = begin(output, "overwrite")
    writing = _WriteSplits(output, SHARDS, RejectLimit())
    writing.setup()
    for batch in slow.batches[0][:-1]:
        assert not list(writing.process(batch, base))
    commit(output, quick.write_all(output, SHARDS), if_exists="overwrite", base=begin(output, "overwrite"))
    assert not (tmp_path / "_distilbeam" / "staging").exists()
    with pytest.raises(OutputError, match="another job has committed"):
        list(writing.process(slow.batches[0][-1], base))
    check_settled(output)
    assert visible_rows(output) == quick.rows


def test_staged_splits_that_another_job_has_removed(tmp_path: Path) -> None:
    """The loser's last split went well, into a staging folder made anew, but its first ones are gone."""
    output = str(tmp_path)
    slow, quick = Plan(lines=21), Plan(lines=9, settings=OTHER)
    base = begin(output, "error")
    records = [slow.write(output, 0, SHARDS)]
    commit(output, quick.write_all(output, SHARDS))
    records += [slow.write(output, ordinal, SHARDS) for ordinal in (1, 2)]
    with pytest.raises(OutputError, match="another job has committed"):
        commit(output, records, base=base)
    check_invariant(output)
    resume_with = Plan(lines=9, settings=OTHER)
    resume(output, resume_with)
    check_settled(output)


def test_a_job_that_was_taken_for_dead(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stalls amid its commit; another job replaces the unfinished commit; when it wakes up it takes all back."""
    slow, quick = Plan(lines=21), Plan(lines=15, settings=OTHER)
    stalled: list[str] = []
    place = commit_module._place

    def stall(state: OutputState, staged: Any, final: Any) -> None:
        place(state, staged, final)
        if not stalled:
            stalled.append(final.path)
            commit(output, quick.write_all(output, SHARDS), if_exists="overwrite", base=begin(output, "overwrite"))

    monkeypatch.setattr(commit_module, "concurrently", lambda function, items: [function(item) for item in items])
    monkeypatch.setattr(commit_module, "_place", stall)
    with pytest.raises(OutputError, match="another job has committed"):
        commit(output, slow.write_all(output, SHARDS))
    assert stalled
    check_settled(output)
    assert visible_rows(output) == quick.rows
    assert load_manifest(output).commit == 2
    assert commits(output) == [2]


def test_a_job_that_was_taken_for_dead_and_places_a_file_late(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on while the other job cleans up, and then finds its staged files gone."""
    slow, quick = Plan(lines=21), Plan(lines=15, settings=OTHER)
    place, save = commit_module._place, Claim.save
    waiting: list[Any] = []

    def stall(state: OutputState, staged: Any, final: Any) -> None:
        if not waiting and final.path.endswith(slow_path):
            waiting.append((state, staged, final))
            commit(output, quick.write_all(output, SHARDS), if_exists="overwrite", base=begin(output, "overwrite"))
        place(state, staged, final)

    def late(claim: Claim, manifest: Any) -> None:
        save(claim, manifest)
        if waiting and manifest.commit == 2:
            place(*waiting[0])

    monkeypatch.setattr(commit_module, "concurrently", lambda function, items: [function(item) for item in items])
    monkeypatch.setattr(commit_module, "_place", stall)
    monkeypatch.setattr(Claim, "save", late)
    records = slow.write_all(output, SHARDS)
    slow_path = final_record(records[0]).shards[0].path
    with pytest.raises(OutputError, match="another job has committed"):
        commit(output, records)
    assert waiting
    check_settled(output)
    assert visible_rows(output) == quick.rows


def test_a_number_that_was_free_again_is_not_taken(output: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between look and claim of a slow job, another one dies at number 1, and a third commits as 2 and removes 1."""
    slow, quick = Plan(lines=21), Plan(lines=15, settings=OTHER)
    create, late = conditional.create, []

    def stall(url: str, data: bytes) -> bool:
        if not late:
            late.append(url)
            filesystems.write_bytes(url, data.replace(b'"target": "', b'"target": "x'))
            commit(output, quick.write_all(output, SHARDS), if_exists="overwrite", base=begin(output, "overwrite"))
            assert commits(output) == [2]
        return create(url, data)

    monkeypatch.setattr(conditional, "create", stall)
    with pytest.raises(OutputError, match="another job has committed"):
        commit(output, slow.write_all(output, SHARDS))
    assert late
    check_settled(output)
    assert commits(output) == [2]
    assert visible_rows(output) == quick.rows


def test_an_existing_output_is_refused_at_the_beginning(output: str) -> None:
    plan = Plan(lines=9)
    commit(output, plan.write_all(output, SHARDS))
    with pytest.raises(OutputExistsError, match=r"overwrite.*resume"):
        begin(output, "error")
    assert begin(output, "overwrite").commit == begin(output, "resume").commit == 1
    filesystems.write_bytes(filesystems.join(output, "mine.parquet"), b"x")
    for if_exists in ("overwrite", "resume"):
        with pytest.raises(OutputExistsError, match="mine"):
            begin(output, if_exists)


def test_a_finished_job_run_again_writes_nothing(output: str) -> None:
    plan = Plan(lines=15)
    commit(output, plan.write_all(output, SHARDS))

    def versions() -> list[tuple[str, int, str]]:
        return [(info.url, info.size, info.version) for info in filesystems.list_files(output)]

    before, bytes_before = versions(), files(output)
    assert resume(output, plan) == 0
    assert versions() == before
    assert files(output) == bytes_before


def test_the_history_says_what_each_commit_did(output: str) -> None:
    first, second = Plan(lines=9, files=1), Plan(lines=9)
    commit(output, first.write_all(output, SHARDS))
    made = load_manifest(output)
    records, redone = stage_rest(output, second)
    assert redone < len(second.splits)
    commit(output, records, if_exists="resume", base=begin(output, "resume"))
    manifest = load_manifest(output)
    one, two = load_entry(output, 1), load_entry(output, 2)
    assert (one.commit, one.base, two.commit, two.base, manifest.commit) == (1, 0, 2, 1, 2)
    assert {file.path for file in one.added} == made.files
    assert {file.path for file in two.added} == manifest.files - made.files
    assert one.removed == two.removed == ()
    assert (two.rows, two.rejects, two.splits) == (manifest.rows, manifest.rejects, len(manifest.records))
    assert one.time <= two.time
    assert two.target == manifest.digest
    assert two.settings == (json.loads(json.dumps(second.settings)),)
    assert len({one.job, two.job}) == 2
    commit(output, Plan(lines=12, settings=OTHER).write_all(output, SHARDS), if_exists="overwrite")
    assert set(load_entry(output, 3).removed) == manifest.files
    assert final_record(records[0]).files


def test_equal_jobs_give_equal_manifests(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    for output in (one, two):
        commit(output, Plan(lines=15).write_all(output, SHARDS))
    assert settled(one) == settled(two)
