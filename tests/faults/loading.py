"""Loading a checkpoint in a process of its own, with bounded time and memory, and what came of it."""

from __future__ import annotations

import multiprocessing
import resource
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

SECONDS = 10.0
BYTES = 1 << 30
_PRELOAD = ["torch", "distilbeam.transforms.encoder", "distilbeam.transforms.distilbert.engine", "tests.faults.loading"]


@dataclass(frozen=True)
class Loaded:
    """What came of a checkpoint.

    Attributes:
        stage: how far it came: ``open``, ``weights``, ``run`` or ``done``.
        error: class of what was raised, and its message; empty where nothing was.
        seconds: what it took.
        bytes: resident memory it needed at most, beyond that of the process before.
        modules: what was imported meanwhile.
    """

    stage: str
    error: str
    message: str
    seconds: float
    bytes: int
    modules: tuple[str, ...]


def load(folder: str, **settings: Any) -> Loaded:
    """Open a checkpoint, load it, and embed a text, in a new process.

    Raises:
        AssertionError: it took more than ``SECONDS``, or the process died.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_load, args=(sender, folder, settings), daemon=True)
    process.start()
    sender.close()
    try:
        assert receiver.poll(SECONDS + 20), f"no answer after {SECONDS + 20} s"
        found: Loaded = receiver.recv()
    finally:
        process.kill()
        process.join()
    return found


def _load(sender: Connection, folder: str, settings: dict[str, Any]) -> None:
    import sys

    from distilbeam.transforms.encoder import Encoder

    before = set(sys.modules)
    resident, virtual = _memory()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + 2 * BYTES, virtual + 2 * BYTES))
    stage, error, message = "open", "", ""
    start = time.perf_counter()
    try:
        encoder = Encoder.load(folder, device="cpu", threads=1, **settings)
        stage = "weights"
        _ = encoder.engine
        stage = "run"
        encoder.embed(["the cat sat on the mat"])
        stage = "done"
    except BaseException as caught:
        error, message = type(caught).__name__, str(caught)
    seconds = time.perf_counter() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - resident
    sender.send(Loaded(stage, error, message, seconds, max(grown, 0), tuple(set(sys.modules) - before)))


def _memory() -> tuple[int, int]:
    """Resident and virtual bytes of this process."""
    with open("/proc/self/statm") as file:
        pages = file.read().split()
    size = resource.getpagesize()
    return int(pages[1]) * size, int(pages[0]) * size
