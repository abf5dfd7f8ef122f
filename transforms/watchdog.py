"""Noticing work that does not progress, such as a model or a tokenizer that hangs, and ending the process."""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

__all__ = ["EXIT_CODE", "STALL_TIMEOUT", "WATCHDOG", "Watchdog"]

EXIT_CODE = 75
"""What the process ends with: a temporary failure (``EX_TEMPFAIL``), so try again."""

STALL_TIMEOUT = 600.0
"""Seconds without progress that are borne by default."""

_log = logging.getLogger(__name__)

_BLAME_SECONDS = 30.0


@dataclass(slots=True, eq=False)
class _Work:
    what: str
    seconds: float
    beat: float
    blame: Callable[[], None] | None = None


class Watchdog:
    """Watches the work of every thread by itself, in a thread that holds no process alive.

    A thread that hangs without giving up Python's global lock cannot be noticed from inside.
    """

    def __init__(self) -> None:
        self._works: dict[int, _Work] = {}
        self._blames: dict[object, tuple[int, Callable[[], None]]] = {}  # by block, the newest last
        self._listener: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._looked = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def watch(self, what: str, seconds: float) -> Iterator[None]:
        """End the process with code 75 if this thread does not ``beat`` for so many seconds inside the block.

        Args:
            what: what is being done, for the log; no text of a document.
            seconds: how long it may go without progress; 0 for as long as it likes.
        """
        thread = threading.get_ident()
        outer = self._works.get(thread)
        if seconds:
            self._works[thread] = _Work(what, seconds, time.monotonic(), self._blamed(thread))
            self._start()
        try:
            yield
        finally:
            if outer is not None:
                outer.beat = time.monotonic()
                self._works[thread] = outer
            else:
                self._works.pop(thread, None)

    @contextmanager
    def blaming(self, blame: Callable[[], None]) -> Iterator[None]:
        """Have a function called before the process is ended for what this thread does inside the block.

        The block may hold the ``yield`` of a generator, and so end at any time and in any thread, when that is closed.
        """
        block = object()
        self._blames[block] = threading.get_ident(), blame
        try:
            yield
        finally:
            del self._blames[block]

    def _blamed(self, thread: int) -> Callable[[], None] | None:
        """What the newest block of a thread has called."""
        blames = self._blames.copy().values()  # in one step, while other threads begin and end theirs
        return next((blame for owner, blame in reversed(blames) if owner == thread), None)

    def inherited(self) -> Callable[[], AbstractContextManager[None]]:
        """What watches another thread that does a part of this one's work, to be entered there."""
        work = self._works.get(threading.get_ident())
        return nullcontext if work is None else partial(self._watch_for, work)

    @contextmanager
    def _watch_for(self, work: _Work) -> Iterator[None]:
        with self.blaming(work.blame or _nobody), self.watch(work.what, work.seconds):
            yield

    def beat(self) -> None:
        """This thread goes on to the next piece of its work."""
        work = self._works.get(threading.get_ident())
        if work is not None:
            work.beat = time.monotonic()
        if self._listener is not None:
            self._listener()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the block this thread waits for others, or loads a model, which may take any time."""
        work = self._works.get(threading.get_ident())
        if work is not None:
            work.beat = math.inf
        try:
            yield
        finally:
            if work is not None:
                work.beat = time.monotonic()

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold a lock inside the block; to wait for it is no stall, since others may take long."""
        with self.paused():
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def listen(self, listener: Callable[[], None]) -> None:
        """Have every beat of every thread told to one function."""
        self._listener = listener

    def _start(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():  # not alive in a process that was forked
                self._thread = threading.Thread(target=self._run, name="distilbeam-watchdog", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        self._looked = time.monotonic()
        while True:
            interval = min([1.0, *(work.seconds / 4 for work in self._works.copy().values())])
            time.sleep(interval)
            self._look(interval)

    def _look(self, interval: float) -> None:
        """End the process if a work has gone without progress; the look before was to be ``interval`` seconds ago."""
        works = self._works.copy()  # in one step, while other threads begin and end theirs
        now = time.monotonic()
        if now - self._looked > interval + 5:
            # The whole process was stopped; what it was doing has not had the time either.
            for work in works.values():
                work.beat = max(work.beat, now)
        self._looked = now
        for thread, work in works.items():
            if now - work.beat > work.seconds and self._works.get(thread) is work:
                _end(work)


def _nobody() -> None:
    """What is called where nobody is to be told."""


def _end(work: _Work) -> None:
    try:
        if work.blame is not None:
            # In a thread that may hang too, since it writes to a store.
            telling = threading.Thread(target=work.blame, daemon=True)
            telling.start()
            telling.join(_BLAME_SECONDS)
        _log.critical(
            "no progress for %g seconds in %s; ending the process with code %d, so that the work is tried again, in a "
            "process of its own, which finds the row that hangs: a runner does so by itself, a job on this machine "
            "when it is run again with `if_exists='resume'` (`stall_timeout` sets the seconds)",
            work.seconds,
            work.what,
            EXIT_CODE,
        )
        logging.shutdown()
    finally:
        os._exit(EXIT_CODE)


WATCHDOG = Watchdog()
"""The watchdog of this process."""
