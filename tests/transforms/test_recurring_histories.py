"""Random histories of a folder, against a dict that says what the output must hold."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from distilbeam.transforms.errors import DistilbeamError
from distilbeam.transforms.output.staging import OutputState
from tests.outputs import Killed, mortal_process
from tests.recurring import Folder, forget, ids, rejects, run, snapshot

NAMES = st.sampled_from("abcdef")
DEATHS: Counter[str] = Counter()
_numbers = itertools.count()


class Recurring:
    """A folder that changes, and two chains over it: one output that is kept in step, and one folder a day."""

    def __init__(self, format: str, split_bytes: int) -> None:
        self.root = f"memory://recurring-{next(_numbers)}"
        self.folder = Folder(f"{self.root}/in", format)
        self.split_bytes = split_bytes
        self.seen: dict[str, int] = {}  # version of each file in the output
        self.versions = itertools.count()
        self.now: dict[str, int] = {}
        self.day = 0
        self.covered: dict[str, int] = {}
        self.perhaps: dict[str, int] = {}  # that of an output that may have been committed or not
        self.killed = self.grouped = False
        self.put("a", 3, False)

    def put(self, name: str, rows: int, bad: bool) -> None:
        fresh = [f"{name}{next(_numbers)}" for _ in range(rows)]
        if bad and self.folder.format == "jsonl":
            fresh[1:1] = [f"!{next(_numbers)}"]
        self.folder.put(name, fresh)
        self.now[self.folder.path(name)] = next(self.versions)

    def touch(self, name: str) -> None:
        if name in self.folder.files:
            self.folder.put(name, self.folder.files[name])
            self.now[self.folder.path(name)] = next(self.versions)

    def remove(self, name: str) -> None:
        # A folder in which nothing is left is an error, and so is one that has no file of the output any more.
        left = self.now.keys() - {self.folder.path(name)}
        known = all(left & files.keys() for files in (self.seen, self.perhaps) if files)
        if name in self.folder.files and left and known:
            self.folder.remove(name)
            del self.now[self.folder.path(name)]

    def die(self, call: int) -> None:
        """A run that ends at some call to the store, while it plans, works or commits."""
        with mortal_process() as die_at:
            die_at(call)
            try:
                run(self.folder.url, self.output, split_bytes=self.split_bytes)
            except (Killed, DistilbeamError) as error:
                if "Killed" not in repr(error):
                    raise
                die_at(-1)
                self.killed, self.perhaps = True, dict(self.now)
                DEATHS["amid the commit" if OutputState.read(self.output).unfinished else "before"] += 1
            else:
                self.settle()

    def keep_in_step(self, calls: list[int]) -> None:
        for call in calls:
            self.die(call)
        changed = {path for path, version in self.now.items() if self.seen.get(path) != version}
        same = self.seen == self.now
        before = snapshot(self.output)
        ran = run(self.folder.url, self.output, split_bytes=self.split_bytes)
        everything = Counter({self.folder.path(n): len(rows) for n, rows in self.folder.files.items() if rows})
        expected = Counter({path: count for path, count in everything.items() if path in changed})
        read = +ran.read
        if self.grouped:  # files that share a split with a changed one are read again, in part
            assert read <= everything
            assert changed or self.seen.keys() - self.now.keys() or not read
        if self.killed:  # what was staged is not read again
            assert self.grouped or read <= expected
        else:
            assert expected <= read
            assert self.grouped or read == expected
        if same and not self.killed:
            assert snapshot(self.output) == before, "nothing new, and yet something was written"
        if not self.killed:
            assert ran.changes.files_added == len(self.now.keys() - self.seen.keys())
            assert ran.changes.files_removed == len(self.seen.keys() - self.now.keys())
            assert ran.changes.files_replaced == len(changed & self.seen.keys())
        self.settle()
        assert ids(self.output) == self.folder.rows
        assert rejects(self.output) == self.folder.bad

    def start_anew_in_groups(self) -> None:
        run(self.folder.url, self.output, split_bytes=self.split_bytes, incremental=False, if_exists="overwrite")
        self.settle()
        self.grouped = True
        assert ids(self.output) == self.folder.rows

    def next_day(self) -> None:
        """A folder for what is new today; yesterday's is all that it needs."""
        since = f"{self.root}/day-{self.day}" if self.day else None
        self.day += 1
        today = f"{self.root}/day-{self.day}"
        ran = run(self.folder.url, today, split_bytes=self.split_bytes, since=since)
        fresh = {path for path, version in self.now.items() if self.covered.get(path) != version}
        files = {n: rows for n, rows in self.folder.files.items() if self.folder.path(n) in fresh}
        assert ids(today) == sorted(row for rows in files.values() for row in rows if row[0] != "!")
        assert +ran.read == +Counter({self.folder.path(n): len(rows) for n, rows in files.items()})
        self.covered = dict(self.now)
        forget(f"{self.root}/day-{self.day - 2}")

    def never_mixed(self) -> None:
        if self.seen and not self.killed:
            found = ids(self.output)
            assert len(found) == len(set(found))

    def settle(self) -> None:
        """The output is that of the folder as it is now."""
        self.seen, self.perhaps, self.killed = dict(self.now), {}, False

    @property
    def output(self) -> str:
        return f"{self.root}/out"


CHANGES = st.lists(
    st.tuples(st.sampled_from(["put", "put", "touch", "remove"]), NAMES, st.integers(0, 9), st.booleans()), max_size=4
)
ACTIONS = st.sampled_from(["keep_in_step", "keep_in_step", "next_day", "both", "both", "start_anew_in_groups"])
CALLS = st.lists(st.integers(0, 60), max_size=2)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.sampled_from(["jsonl", "jsonl", "csv", "parquet"]),
    st.sampled_from([60, 200, 10_000]),
    st.lists(st.tuples(CHANGES, ACTIONS, CALLS), min_size=3, max_size=6),
)
def run_histories(format: str, split_bytes: int, days: list[tuple[Any, str, list[int]]]) -> None:
    recurring = Recurring(format, split_bytes)
    try:
        for changes, action, calls in days:
            for change, name, rows, bad in changes:
                if change == "put":
                    recurring.put(name, rows, bad)
                else:
                    getattr(recurring, change)(name)
            if action == "start_anew_in_groups":
                recurring.start_anew_in_groups()
            if action in ("keep_in_step", "both"):
                recurring.keep_in_step(calls)
            if action in ("next_day", "both"):
                recurring.next_day()
            recurring.never_mixed()
    finally:
        forget(recurring.root)


def test_random_histories() -> None:
    DEATHS.clear()
    run_histories()
    assert DEATHS["before"] > 5
    assert DEATHS["amid the commit"] > 2
