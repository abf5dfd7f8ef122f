"""Two threads that take turns at every call to the disk, in an order drawn from a seed.

Threads left to themselves meet at one moment once in many hundred runs; here each run tries another order.
"""

from __future__ import annotations

import builtins
import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.output import claims, cleaning, staging
from distilbeam.transforms.output import commit as commit_module
from distilbeam.transforms.storage import conditional

_CALLS = (
    (os, "replace"),
    (os, "link"),
    (os, "open"),
    (os, "scandir"),
    (shutil, "rmtree"),
    (Path, "unlink"),
    (Path, "replace"),
    (Path, "read_bytes"),
    (builtins, "open"),
)


class Schedule:
    """Who may go on."""

    def __init__(self, seed: int, workers: int) -> None:
        self._random = random.Random(seed)
        self._switch = self._random.choice([0.5, 0.2, 0.05, 0.02])  # long and short turns
        self._turns = threading.Condition()
        self._alive = set(range(workers))
        self._now: int | None = self._random.randrange(workers)
        self._me = threading.local()

    def run(self, works: Sequence[Callable[[], object]]) -> list[Any]:
        """Does all works, one per thread; gives what each returns."""
        results: list[Any] = [None] * len(works)

        def work(number: int) -> None:
            self._me.number = number
            try:
                results[number] = works[number]()
            finally:
                self._me.number = None
                with self._turns:
                    self._alive.discard(number)
                    self._draw()

        threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(len(works))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        return results

    def _draw(self) -> None:
        self._now = self._random.choice(sorted(self._alive)) if self._alive else None
        self._turns.notify_all()

    def step(self) -> None:
        """Waits for the turn of this thread, if it is one of ours."""
        number = getattr(self._me, "number", None)
        if number is None:
            return
        with self._turns:
            assert self._turns.wait_for(lambda: self._now == number, 60)
            if self._random.random() < self._switch:
                self._draw()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Does what is in the block in one turn."""
        number = getattr(self._me, "number", None)
        self._me.number = None
        try:
            yield
        finally:
            self._me.number = number


@contextmanager
def scheduled(seed: int, workers: int = 2) -> Iterator[Schedule]:
    """A schedule that all calls to the disk keep to."""
    schedule = Schedule(seed, workers)

    def stepping(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            schedule.step()
            return function(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module in (claims, cleaning, commit_module, staging):
            patch.setattr(module, "concurrently", lambda function, items: [function(item) for item in items])
        for owner, name in _CALLS:
            patch.setattr(owner, name, stepping(getattr(owner, name)))
        patch.setattr(os, "fsync", lambda descriptor: None)
        # A thread that waits for this lock would have the turn that the lock's holder needs.
        patch.setattr(conditional, "_locked", lambda folder: schedule.alone())
        yield schedule
