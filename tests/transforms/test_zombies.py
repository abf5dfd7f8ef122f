"""Jobs that are taken for dead and are not, that die at the worst of moments, or run twice: each in a set order.

The jobs are threads of which one runs at a time, up to a call to the store that the test names. Whoever then says that
it has succeeded must have left one whole output, and what the others have left goes with the next run.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import DistilbeamError
from distilbeam.transforms.output import claims, cleaning, staging
from distilbeam.transforms.output import commit as commit_module
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.records import SplitRecord
from distilbeam.transforms.storage import conditional, filesystems
from tests.outputs import (
    MANIFEST,
    SHARDS,
    check_invariant,
    check_settled,
    files,
    is_visible,
    put,
    resume,
    visible_rows,
)
from tests.plans import Plan

OTHER, THIRD = {"model": "other"}, {"model": "third"}
OVERTAKEN = "another job has committed"

_CALLS = (
    (conditional, "create"),
    (conditional, "read"),
    (conditional, "replace"),
    (filesystems, "delete"),
    (filesystems, "exists"),
    (filesystems, "list_files"),
    (filesystems, "move"),
    (filesystems, "write_bytes"),
)
_CLAIM = ("claim", "/history/")
_FENCE = ("fence", "/manifest.json")
_MOVE = ("move", "/staging/")
_REJECTS = ("write_bytes", "/_rejects/")
_SAVE = ("save", "/manifest.json")


class Dead(BaseException):
    """The process is gone."""


class Job:
    """A job that runs only while the test waits for it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.told: str | None = None
        self._work = work
        self._stop: tuple[str, str] | None = None
        self._after = self._dies = False
        self._go, self._held = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def until(self, stop: tuple[str, str], times: int = 1, *, after: bool = False) -> Job:
        """Runs to a call with a word in its path, the so-manieth from here, and stands still before or after it."""
        for _ in range(times):
            assert self._resume(stop, after), (stop, self.told)
        return self

    def reaches(self, calls: int) -> bool:
        """Runs until it is about to make so many calls of any kind; whether it makes as many."""
        return all(self._resume(("", ""), False) for _ in range(calls))

    def ends(self) -> str:
        """Runs to its end; gives what it says: nothing for success."""
        assert not self._resume(None, False)
        assert self.told is not None
        return self.told

    def dies(self) -> None:
        """Ends where it stands, as by a signal."""
        self._dies = True
        assert self.ends() == "dead"

    def at(self, call: str, path: str, after: bool) -> None:
        """Stands still here if it is where the test wants it."""
        if threading.current_thread() is self._thread and self._stop and after == self._after:
            name, word = self._stop
            if name in ("", call) and word in path:
                self._held.release()
                self._go.acquire()
                if self._dies:
                    raise Dead

    def _resume(self, stop: tuple[str, str] | None, after: bool) -> bool:
        self._stop, self._after = stop, after
        self._go.release()
        assert self._held.acquire(timeout=60)
        return self.told is None

    def _run(self) -> None:
        self._go.acquire()
        try:
            self._work()
            self.told = ""
        except DistilbeamError as error:
            self.told = str(error)
        except Dead:
            self.told = "dead"
        finally:
            if self.told is None:
                self.told = "broken"
            self._held.release()


def _named(call: str, path: str, data: object = None, *_: object) -> str:
    """What a call to the store is for the commit."""
    if call not in ("create", "replace") or not isinstance(data, bytes):
        return call
    if not path.endswith(MANIFEST):
        return "claim"
    return "fence" if b"taken_over_by" in data else "save"


Start = Callable[[Callable[[], object]], Job]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    jobs: list[Job] = []

    def held(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: Any) -> object:
            name, path = _named(function.__name__, *args), str(args[0])
            for job in jobs:
                job.at(name, path, after=False)
            result = function(*args)
            for job in jobs:
                job.at(name, path, after=True)
            return result

        return call

    for module in (claims, cleaning, commit_module, staging):
        monkeypatch.setattr(module, "concurrently", lambda function, items: [function(item) for item in items])
    for owner, name in _CALLS:
        monkeypatch.setattr(owner, name, held(getattr(owner, name)))

    def begun(work: Callable[[], object]) -> Job:
        jobs.append(Job(work))
        return jobs[-1]

    return begun


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output with a first commit, so that there is something to replace."""
    output = str(tmp_path / "out")
    commit(output, Plan(lines=12).write_all(output, SHARDS))
    return output


def overwrite(output: str, plan: Plan) -> Callable[[], object]:
    def work() -> None:
        base = begin(output, "overwrite")
        commit(output, plan.write_all(output, SHARDS), if_exists="overwrite", base=base)

    return work


def staged(output: str, records: list[SplitRecord]) -> Callable[[], object]:
    """A job that has staged everything and begins its commit."""
    return lambda: commit(output, records, if_exists="overwrite", base=begin(output, "overwrite"))


def check_whole(output: str, plan: Plan) -> None:
    """The output is that of the plan: all files of the manifest with their bytes, and each row is read once."""
    found, manifest = files(output), load_manifest(output)
    for record in manifest.records:
        for file in record.files:
            assert file.path in found, file.path
            data = found[file.path]
            assert (len(data), hashlib.sha256(data).hexdigest()) == (file.bytes, file.sha256), file.path
            assert pq.read_metadata(io.BytesIO(data)).num_rows == file.rows
    assert {path for path in found if is_visible(path)} == {shard.path for shard in manifest.shards}
    assert visible_rows(output) == plan.rows
    assert manifest.rejects == len(plan.rejects)


def check_goes_on(output: str, plan: Plan) -> None:
    """The next runs are not refused, and leave nothing over."""
    resume(output, plan)
    check_whole(output, plan)
    check_settled(output)
    after = Plan(lines=6)
    overwrite(output, after)()
    check_whole(output, after)
    check_settled(output)


def twins_and_another(output: str, start: Start, plan: Plan, other: Plan) -> tuple[Job, Job, Job]:
    """One commit twice, once amid its moves and once about to save, and a third job that has not begun."""
    base, records = begin(output, "overwrite"), plan.write_all(output, SHARDS)
    one, two = (start(lambda: commit(output, records, if_exists="overwrite", base=base)) for _ in range(2))
    third = start(overwrite(output, other))
    one.until(_MOVE, after=True)
    two.until(_SAVE)
    return one, two, third


def test_a_twin_that_gives_up_leaves_what_the_other_one_names(output: str, start: Start) -> None:
    """One twin sees a third job and gives up; the other one is about to save, before that job's fence."""
    plan, other = Plan(lines=15), Plan(lines=9, settings=OTHER)
    one, two, third = twins_and_another(output, start, plan, other)
    third.until(_FENCE)
    assert OVERTAKEN in one.ends()
    assert two.ends() == ""
    check_whole(output, plan)
    assert OVERTAKEN in third.ends()
    check_whole(output, plan)
    check_goes_on(output, plan)


def test_a_twin_that_gives_up_after_the_fence(output: str, start: Start) -> None:
    """As before, but the third job has fenced the manifest off: it is the one that commits."""
    plan, other = Plan(lines=15), Plan(lines=9, settings=OTHER)
    one, two, third = twins_and_another(output, start, plan, other)
    third.until(_FENCE, after=True)
    assert OVERTAKEN in one.ends()
    assert OVERTAKEN in two.ends()
    assert third.ends() == ""
    check_whole(output, other)
    check_goes_on(output, other)


def test_a_job_that_gives_up_leaves_equal_files_of_another(output: str, start: Start) -> None:
    """Of three jobs the first two share files: the first, taken for dead, wakes up while the second saves."""
    slow, quick, other = Plan(lines=15, files=2), Plan(lines=15, files=3), Plan(lines=9, settings=OTHER)
    first, second, third = (start(overwrite(output, plan)) for plan in (slow, quick, other))
    first.until(_MOVE, 2)
    second.until(_SAVE)
    third.until(_FENCE)
    assert OVERTAKEN in first.ends()
    assert second.ends() == ""
    check_whole(output, quick)
    assert OVERTAKEN in third.ends()
    check_whole(output, quick)
    check_goes_on(output, quick)


@pytest.mark.parametrize("dies", [False, True])
def test_a_file_that_was_placed_between_a_look_and_a_claim(
    output: str, tmp_path: Path, start: Start, dies: bool
) -> None:
    """Its job dies with it; the next one must not place the same rows beside it, nor take it for a stranger's."""
    slow, quick = Plan(lines=15), Plan(lines=9, settings=OTHER)
    first, second = start(overwrite(output, slow)), start(overwrite(output, quick))
    moves = sum(len(record.shards) for record in quick.write_all(tmp_path / "apart", SHARDS))
    first.until(_MOVE, 2)
    second.until(_CLAIM)
    first.until(_MOVE, after=True)
    first.dies()
    for _ in range(moves):
        second.until(_MOVE, after=True)
        check_invariant(output)
    if dies:
        second.until(_SAVE, after=True).dies()
    else:
        assert second.ends() == ""
    check_whole(output, quick)
    check_goes_on(output, quick)


def test_a_file_that_comes_to_its_place_after_all_looks(output: str, start: Start) -> None:
    """Placed late and left by the dead; the next job dies before it has cleaned up. The stray is known as one."""
    slow, quick = Plan(lines=15), Plan(lines=9, settings=OTHER)
    first, second = start(overwrite(output, slow)), start(overwrite(output, quick))
    first.until(_MOVE, 2)
    second.until(_SAVE, after=True)
    first.until(_MOVE, after=True)
    first.dies()
    second.dies()
    check_goes_on(output, quick)


@pytest.mark.parametrize("commits", [False, True])
def test_cleaning_up_leaves_what_a_later_job_has_staged(output: str, start: Start, commits: bool) -> None:
    """Staged work of a dead job is listed by one that cleans up, and meanwhile taken up by another one."""
    here, later = Plan(lines=15 if commits else 12), Plan(lines=15, settings=OTHER)
    base, records = begin(output, "overwrite"), later.write_all(output, SHARDS)
    for number in range(3):
        Path(output, f"_distilbeam/staging/0dead{number:03d}-000.parquet").write_bytes(b"x")
    cleaner = start(overwrite(output, here) if commits else lambda: resume(output, here))
    assert base.newest == 1
    cleaner.until(("delete", "/staging/0dead001"))
    taken_up = start(staged(output, records)).until(_MOVE)
    assert cleaner.ends() == ""
    assert taken_up.ends() == ""
    check_whole(output, later)
    check_goes_on(output, later)


def test_a_rejects_file_that_was_cut_short_is_made_again(output: str) -> None:
    plan = Plan(lines=15)
    overwrite(output, plan)()
    before = files(output)
    path = next(record.rejects_file.path for record in load_manifest(output).records if record.rejects_file)
    Path(output, path).write_bytes(before[path][:40])
    assert resume(output, plan) == 1
    check_whole(output, plan)
    check_settled(output)
    assert files(output)[path] == before[path]


def test_rejects_that_come_to_their_place_late(output: str, start: Start) -> None:
    """A job that was taken for dead writes rejects after the other's commit, and is killed."""
    slow, quick = Plan(lines=15), Plan(lines=9, settings=OTHER)
    first = start(overwrite(output, slow)).until(_REJECTS)
    overwrite(output, quick)()
    first.until(_REJECTS, after=True)
    first.dies()
    check_whole(output, quick)
    assert len([path for path in files(output) if path.startswith("_rejects/")]) > len(_rejects(output))
    check_goes_on(output, quick)


def _rejects(output: str) -> list[str]:
    return [record.rejects_file.path for record in load_manifest(output).records if record.rejects_file]


def test_one_of_two_jobs_that_find_a_dead_one_commits(output: str, start: Start) -> None:
    """The first fences the manifest off after the second has read it, and gives up since the second has a number."""
    one, two = Plan(lines=15), Plan(lines=9, settings=OTHER)
    start(overwrite(output, Plan(lines=9, settings=THIRD))).until(_MOVE).dies()
    first, second = start(overwrite(output, one)), start(overwrite(output, two))
    first.until(_FENCE)
    second.until(_CLAIM)
    first.until(_FENCE, after=True)
    second.until(_FENCE)
    assert OVERTAKEN in first.ends()
    assert second.ends() == ""
    check_whole(output, two)
    check_goes_on(output, two)


def test_an_output_that_is_replaced_while_a_job_looks_at_it(output: str, start: Start) -> None:
    """At whichever call: it takes no file of ours for a stranger's, and sees the one commit or the other."""
    records = Plan(lines=15).write_all(output, SHARDS)
    base, before = begin(output, "overwrite"), files(output)
    for calls in itertools.count(1):
        put(output, before)
        found: list[tuple[int, int]] = []

        def look(found: list[tuple[int, int]] = found) -> None:
            found.append(begin(output, "overwrite").seen)

        looking = start(look)
        if not looking.reaches(calls):
            break
        commit(output, records, if_exists="overwrite", base=base)
        assert looking.ends() == "", calls
        assert found in ([(1, 1)], [(2, 2)]), calls
    assert calls > 2
