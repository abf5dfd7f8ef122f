"""Passes of the model side by side: on a CPU each on a core or more of its own, on a GPU each in a stream."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from distilbeam.transforms.watchdog import WATCHDOG

__all__ = ["LEAST_OF_A_CORE", "in_lanes", "share"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

# A shorter pass spends more on its calls than it gains from being alone on its core.
LEAST_OF_A_CORE = 256
# After so many micro-batches it matters little that a lane has one more to do than another.
_MANY = 4


def share(lengths: npt.NDArray[np.int64], token_budget: int, lanes: int, least: int = LEAST_OF_A_CORE) -> int:
    """Tokens for a micro-batch, ``token_budget`` at most, of which about equally many come to every lane.

    Args:
        lengths: int64[rows], tokens in each row.
        token_budget: tokens in a micro-batch, at least 1.
        lanes: how many work side by side.
        least: tokens that are not worth being divided.
    """
    tokens = int(lengths.sum())
    rounds = -(-tokens // (token_budget * lanes))
    if lanes == 1 or not 0 < rounds < _MANY:
        return token_budget
    return min(token_budget, max(least, -(-tokens // (rounds * lanes))))


def in_lanes(items: deque[T], work: Callable[[T], None], lanes: int, threads: int) -> None:
    """Work off a queue in several threads, which divide the threads that torch computes with among them.

    Threads of one pass wait for each other after every matrix product; passes wait for nothing. Once one fails, or this
    thread is interrupted, no further item is begun, and all are idle when this returns; items that failed are at the
    front of the queue again.

    Args:
        items: what is to be done; empty afterwards, unless something fails.
        work: does one item, in any of the threads.
        lanes: threads at most, at least 1; with one the calling thread does all.
        threads: of torch in all lanes together, and in the calling thread once several lanes have run.

    Raises:
        Exception: what ``work`` raised first.
    """
    failures: list[tuple[T, BaseException]] = []
    ended: list[BaseException] = []

    def work_off() -> None:
        while not failures and not ended:
            try:
                item = items.popleft()
            except IndexError:
                return
            try:
                work(item)
            except BaseException as error:
                failures.append((item, error))

    lanes = min(lanes, len(items))
    if lanes <= 1:
        work_off()
    else:
        _side_by_side(work_off, lanes, threads, ended)
    items.extendleft(item for item, _ in failures)
    error = ended[0] if ended else failures[0][1] if failures else None
    failures.clear()
    ended.clear()
    try:
        if error is not None:
            raise error
    finally:
        del error  # else it would hold this frame, and the frame it


def _side_by_side(work_off: Callable[[], None], lanes: int, threads: int, ended: list[BaseException]) -> None:
    """Run a function in several threads at once; what goes wrong around it is put into ``ended``."""
    watch = WATCHDOG.inherited()

    def lane() -> None:
        try:
            torch.set_num_threads(max(1, threads // lanes))
            with watch(), torch.inference_mode():
                work_off()
        except BaseException as error:
            ended.append(error)

    crew: list[_Worker] = []
    try:
        with WATCHDOG.paused():
            try:
                for _ in range(lanes):
                    crew.append(_Worker.idle())
                for worker in crew:
                    worker.begin(partial(copy_context().run, lane))
                for worker in crew:
                    worker.wait()
            except BaseException as error:
                ended.append(error)
                for worker in crew:
                    worker.wait()
            # One that was not waited for, since that was interrupted too, may still be busy.
            _IDLE.extend(crew)
    finally:
        torch.set_num_threads(threads)


class _Worker:
    """A thread that stays when its work is done, since a new one would be given memory of its own by malloc.

    It is one that no end of the interpreter waits for.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="distilbeam-lane", daemon=True).start()

    @classmethod
    def idle(cls) -> _Worker:
        """One that has nothing to do, a new one if need be."""
        try:
            return _IDLE.pop()
        except IndexError:
            return cls()

    def begin(self, task: Callable[[], object]) -> None:
        self._tasks.put(task)

    def wait(self) -> None:
        """Wait until all is done that was begun."""
        # No join: one that was interrupted takes a thread that runs for one that has ended.
        over = threading.Event()
        self._tasks.put(over.set)
        over.wait()

    def _work(self) -> None:
        while True:
            try:
                self._tasks.get()()
            except BaseException as error:  # else the next task would wait for ever
                _log.error("a thread of a lane met %s", type(error).__name__)


_IDLE: list[_Worker] = []
# A process that was forked has not got the threads.
if hasattr(os, "register_at_fork"):  # not on Windows, which never forks
    os.register_at_fork(after_in_child=_IDLE.clear)
