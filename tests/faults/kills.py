"""Jobs killed at random points or amid their commit, and run again until they are done."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.jobs import Done, Runner, kill
from tests.faults.oracle import MANIFEST, Truth, check_moment, check_output, is_readable, newest_entry
from tests.faults.stores import S3, Disk, Store

__all__ = ["Kill", "Outcome", "Scenario", "disturbed", "fill"]

_RECORD = re.compile(r"_distilbeam/staging/[^/]+\.json")
_ATTEMPTS = re.compile(r"_distilbeam/staging/[^/]+\.attempts")


@dataclass(frozen=True)
class Scenario:
    """A job that is to be killed.

    Attributes:
        name: in a word.
        before: files of the output folder before the first run.
        command: arguments of a run, given the folder; the same each time.
        truth: what must come out.
        seconds: what an undisturbed run takes.
    """

    name: str
    before: Mapping[str, bytes]
    command: Callable[[str], Sequence[str]]
    truth: Truth
    seconds: float


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: where it hit, splits that were begun and not finished, and peak memory of the process."""

    phase: str
    redone: int
    peak_mb: float | None


@dataclass
class Outcome:
    """A job's kills, its runs in all, and the seconds of all runs."""

    kills: list[Kill] = field(default_factory=list)
    runs: int = 0
    seconds: float = 0.0


def fill(store: Store, files: Mapping[str, bytes]) -> None:
    """Makes a folder hold just these files."""
    if isinstance(store, Disk):
        shutil.rmtree(store.path, ignore_errors=True)
        for name, data in files.items():
            path = store.path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    elif isinstance(store, S3):
        for name in store.names():
            store.delete(name)
        for name, data in files.items():
            store.write(name, data)


def disturbed(
    scenario: Scenario,
    store: Store,
    runner: Runner,
    chance: random.Random,
    *,
    kills: int,
    environment: Mapping[str, str],
    warm: bool = True,
) -> Outcome:
    """Kills a job several times, checking the folder after each kill, and lets it end; asserts O.

    Args:
        scenario: the job.
        store: the folder of its output; what is in it is lost.
        runner: runs it.
        chance: decides about the moments.
        kills: how often it is killed.
        environment: of the job.
        warm: whether the processes are forked from one with all imports, or begun anew.
    """
    outcome = Outcome()
    fill(store, scenario.before)
    command = scenario.command(store.url)
    longest = scenario.seconds
    for attempt in range(20):
        if len(outcome.kills) == kills:
            break
        assert attempt < 19, "the job is over before it can be killed"
        before = _committed(store)
        if chance.random() < 0.5:
            disturb = _at_the_commit(store, chance.uniform(0, 0.03))
        else:
            disturb = _after(chance.uniform(0, longest))
        done = runner(command, environment=environment, disturb=disturb, warm=warm)
        outcome.runs += 1
        outcome.seconds += done.seconds
        if done.code == 0:  # it was faster than the kill
            longest *= 0.7
            outcome.kills.clear()
            fill(store, scenario.before)
            continue
        assert done.code == -9, done.said
        outcome.kills.append(_kill(store, before, done))
        check_moment(store)
    done = runner(command, environment=environment, warm=warm)
    assert done.code == 0, done.said
    outcome.runs += 1
    outcome.seconds += done.seconds
    check_output(store, scenario.truth)
    return outcome


def _after(seconds: float) -> Callable[[int], None]:
    def disturb(pid: int) -> None:
        time.sleep(seconds)
        kill(pid)

    return disturb


def _at_the_commit(store: Store, seconds: float) -> Callable[[int], None]:
    """Kills a while after the first sign of the commit: a new entry in the history, or another readable file."""
    before = _signs(store)

    def disturb(pid: int) -> None:
        while _lives(pid) and _signs(store) == before:
            time.sleep(0.0005)
        time.sleep(seconds)
        kill(pid)

    return disturb


def _signs(store: Store) -> tuple[str | None, frozenset[str]]:
    names = store.names()
    return newest_entry(names), frozenset(name for name in names if is_readable(name))


def _lives(pid: int) -> bool:
    """Whether a process runs; one that has ended may still wait to be asked for its exit code."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def _committed(store: Store) -> int:
    return int(json.loads(store.read(MANIFEST)).get("commit", 0)) if MANIFEST in store.names() else 0


def _kill(store: Store, before: int, done: Done) -> Kill:
    names = store.names()
    entry = newest_entry(names)
    committed = _committed(store)
    begun = sum(bool(_ATTEMPTS.fullmatch(name)) for name in names)
    finished = sum(bool(_RECORD.fullmatch(name)) for name in names)
    if entry and int(Path(entry).stem) > committed:
        phase = "committing"
    elif committed > before:
        phase = "cleaning up after the commit"
    elif finished:
        phase = "writing splits"
    elif begun:
        phase = "reading and model"
    else:
        phase = "planning"
    return Kill(phase, max(begun - finished, 0), done.peak_mb)
