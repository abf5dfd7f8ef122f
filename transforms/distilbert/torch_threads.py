"""Threads that torch computes with: set while a model works, and given back to the program around it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["host_threads", "torch_threads"]

_lock = threading.Lock()
_working = 0  # how many are inside ``torch_threads``
_host = 0  # what was set before the first of them came
_mine = threading.local()  # ``count`` of the innermost block that this thread is in


def host_threads() -> int:
    """The number that holds where no model works: the host program's own, or torch's default."""
    with _lock:
        return _host if _working else torch.get_num_threads()


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Compute with so many threads in a block.

    torch keeps the number for each thread, and for threads to come that of the last who set it. So models may work side
    by side, each in a thread of its own and with its own number; once a thread is out of its block it has the host's,
    or the number of the block around it.
    """
    global _working, _host
    with _lock:
        if not _working:
            _host = torch.get_num_threads()
        _working += 1
    outer = getattr(_mine, "count", None)
    _mine.count = count
    try:
        _set(count)
        yield
    finally:
        with _lock:
            _working -= 1
            _mine.count = outer
            _set(_host if outer is None else outer)


def _set(count: int) -> None:
    # It may build a pool of threads anew, even where nothing changes.
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
