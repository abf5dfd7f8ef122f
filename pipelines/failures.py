"""What a failed job is told as: one sentence, without any text of a document."""

from __future__ import annotations

import errno
import re
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from distilbeam.transforms import errors
from distilbeam.transforms.discretion import masked
from distilbeam.transforms.output.history import list_entries
from distilbeam.transforms.output.manifest import find_manifest
from distilbeam.transforms.storage.filesystems import is_local
from distilbeam.transforms.watchdog import EXIT_CODE

__all__ = ["commits_now", "deaths_noted", "explain", "frames", "recover", "told_death"]

_CLASSES = {name: getattr(errors, name) for name in errors.__all__}
# How a runner with workers of its own reports what one of them raised: as the text of a traceback.
_RAISED = re.compile(
    r"^ +.*\ndistilbeam\.transforms\.errors\.(\w+): (.*?)(?: \[while running|\n\n|\n *File |\nTraceback|\Z)",
    re.M | re.S,
)
# The line after the indented ones, so that no line of a message passes for it.
_CLASS = re.compile(r"^ +.*\n([A-Za-z_][\w.]*)(?=:|$)", re.M)
_FRAME = re.compile(r'^ *File "([^"]+)", line (\d+)', re.M)
# What the thread of a worker process raises once that has ended.
_DEATH = re.compile(r"Worker subprocess exited with return code (-?\d+)")
# Where Beam hands a job to a runner elsewhere, and where it or we run one.
_ELSEWHERE = re.compile(r"/apache_beam/runners/(portability/(portable|flink|spark|prism)_\w+|dataflow/\w+)\.py$")
_WORKER = re.compile(
    r"/apache_beam/runners/(worker|portability/fn_api_runner|direct|interactive)/|/transforms/\w+\.py$"
)
_QUOTED = re.compile(r'Traceback|\[while running|^ *File "', re.M)
_LONGEST = 300
_RESUME = "run again with `if_exists='resume'`, which keeps the finished work"
_STEP = re.compile(r" \[while running '.*", re.S)


def recover(error: BaseException) -> errors.DistilbeamError | None:
    """The error of ours that made a job fail, wherever the runner has put it."""
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, errors.DistilbeamError):
            return type(current)(_sentence(str(current)))
        for name, message in reversed(_RAISED.findall(str(current))):
            if name in _CLASSES:
                return _CLASSES[name](_sentence(message))
        current = current.__cause__ or current.__context__
    return None


def explain(error: BaseException) -> str:
    """What is said of an error that is not ours: its class alone, since its message may quote a document.

    A runner that has not taken the job has seen no document, so of its errors the first line is told too.
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{type(error).__name__}, because the disk is full; free some space and {_RESUME}"
    if _is_of_submission(error):
        details = getattr(error, "details", None)  # of gRPC, whose text begins with a heading
        lines = str(details() if callable(details) else error).strip().splitlines()
        return type(error).__name__ + (f": {masked(lines[0])[:_LONGEST]}" if lines else "")
    names = _CLASS.findall(str(error)) if _quotes_a_traceback(error) else []
    return str(names[-1]) if names else type(error).__name__


@contextmanager
def deaths_noted() -> Iterator[list[int]]:
    """The codes that worker processes end with inside the block, in their order.

    Beam raises them in threads of its own, where they reach nobody but the terminal.
    """
    codes: list[int] = []
    before = threading.excepthook

    def note(raised: Any) -> None:
        death = _DEATH.search(str(raised.exc_value))
        if death:
            codes.append(int(death[1]))
        else:
            before(raised)

    threading.excepthook = note
    try:
        yield codes
    finally:
        threading.excepthook = before


def told_death(code: int) -> str:
    """What is said of a worker process that has ended with a code."""
    if code == EXIT_CODE:
        return (
            f"a worker has ended itself, since a text made no progress for the time of `stall_timeout`; {_RESUME} and "
            "sets that text aside"
        )
    number = -code if code < 0 else code - 128  # the second is how a shell puts it
    name = f"code {code}"
    with suppress(ValueError):
        name = signal.Signals(number).name
    if name == "SIGKILL":
        return (
            "a worker was killed (SIGKILL), as systems do where memory runs out; give it more memory, fewer workers or "
            f"a smaller `token_budget`, and {_RESUME}"
        )
    return f"a worker has died ({name}); {_RESUME}, and it runs the texts at hand in processes of their own"


def commits_now(output: str) -> bool:
    """Whether a commit has begun in an output on this machine and has not ended."""
    with suppress(Exception):
        if is_local(output):
            newest = max(list_entries(output), default=0)
            manifest = find_manifest(output)
            return newest > (manifest.commit if manifest else 0)
    return False


def frames(error: BaseException) -> list[str]:
    """Where an error came from, outermost first, as ``file:line``."""
    told = [f"{name}:{line}" for name, line in _FRAME.findall(str(error))] if _quotes_a_traceback(error) else []
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)] + told


def _is_of_submission(error: BaseException) -> bool:
    """Whether a runner elsewhere has failed before it ran anything."""
    places = [(Path(frame.filename).as_posix(), frame.name) for frame in traceback.extract_tb(error.__traceback__)]
    if any(name == "wait_until_finish" or _WORKER.search(place) for place, name in places):
        return False
    return any(_ELSEWHERE.search(place) for place, _ in places) and not _QUOTED.search(str(error))


def _quotes_a_traceback(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("apache_beam.")


def _sentence(message: str) -> str:
    return " ".join(_STEP.sub("", message).split())
