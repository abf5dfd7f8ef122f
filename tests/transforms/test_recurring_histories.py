"""Random histories of a folder, against a dict that says what the output must hold."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.recurring import Folder, Killed, forget, ids, rejects, run, snapshot

NAMES = st.sampled_from("abcdef")
_numbers = itertools.count()


class Recurring(RuleBasedStateMachine):
    """A folder that changes, and two chains over it: one output that is kept in step, and one folder a day."""

    @initialize(
        format=st.sampled_from(["jsonl", "csv", "parquet"]),
        split_bytes=st.sampled_from([60, 200, 10_000]),
    )
    def begin(self, format: str, split_bytes: int) -> None:
        self.root = f"memory://recurring-{next(_numbers)}"
        self.folder = Folder(f"{self.root}/in", format)
        self.split_bytes = split_bytes
        self.seen: dict[str, int] = {}  # version of each file in the output
        self.versions = itertools.count()
        self.now: dict[str, int] = {}
        self.day = 0
        self.covered: dict[str, int] = {}
        self.killed = self.grouped = False
        self.put("a", 3, False)

    @rule(name=NAMES, rows=st.integers(0, 9), bad=st.booleans())
    def put(self, name: str, rows: int, bad: bool) -> None:
        fresh = [f"{name}{next(_numbers)}" for _ in range(rows)]
        if bad and self.folder.format == "jsonl":
            fresh[1:1] = [f"!{next(_numbers)}"]
        self.folder.put(name, fresh)
        self.now[self.folder.path(name)] = next(self.versions)

    @rule(name=NAMES)
    def touch(self, name: str) -> None:
        if name in self.folder.files:
            self.folder.put(name, self.folder.files[name])
            self.now[self.folder.path(name)] = next(self.versions)

    @rule(name=NAMES)
    def remove(self, name: str) -> None:
        # A folder in which nothing is left is an error, and so is one that has no file of the output any more.
        left = self.now.keys() - {self.folder.path(name)}
        if name in self.folder.files and left and (not self.seen or left & self.seen.keys()):
            self.folder.remove(name)
            del self.now[self.folder.path(name)]

    @rule(after=st.integers(0, 2))
    def die(self, after: int) -> None:
        """A run that ends amid its work."""
        before = ids(self.output) if self.seen else None
        try:
            run(self.folder.url, self.output, split_bytes=self.split_bytes, die_after=after)
        except Killed:
            self.killed = True
            assert before is None or ids(self.output) == before
        else:
            self.seen, self.killed = dict(self.now), False

    @rule()
    def keep_in_step(self) -> None:
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
        assert ran.changes.files_added == len(self.now.keys() - self.seen.keys())
        assert ran.changes.files_removed == len(self.seen.keys() - self.now.keys())
        assert ran.changes.files_replaced == len(changed & self.seen.keys())
        self.seen, self.killed = dict(self.now), False
        assert ids(self.output) == self.folder.rows
        assert rejects(self.output) == self.folder.bad

    @rule()
    def start_anew_in_groups(self) -> None:
        run(self.folder.url, self.output, split_bytes=self.split_bytes, incremental=False, if_exists="overwrite")
        self.seen, self.killed, self.grouped = dict(self.now), False, True
        assert ids(self.output) == self.folder.rows

    @rule()
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

    @invariant()
    def never_mixed(self) -> None:
        if getattr(self, "seen", None):
            found = ids(self.output)
            assert len(found) == len(set(found))

    @property
    def output(self) -> str:
        return f"{self.root}/out"

    def teardown(self) -> None:
        forget(self.root)


def test_random_histories() -> None:
    checks = list(HealthCheck)
    run_state_machine_as_test(
        Recurring,
        settings=settings(max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=checks),
    )
