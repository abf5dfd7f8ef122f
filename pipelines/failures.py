"""What a failed job is told as: one sentence, without any text of a document."""

from __future__ import annotations

import re
import traceback

from distilbeam.transforms import errors

__all__ = ["explain", "frames", "recover"]

_CLASSES = {name: getattr(errors, name) for name in errors.__all__}
# How a runner with workers of its own reports what one of them raised: as the text of a traceback.
_RAISED = re.compile(
    r"^ +.*\ndistilbeam\.transforms\.errors\.(\w+): (.*?)(?: \[while running|\n\n|\n *File |\nTraceback|\Z)",
    re.M | re.S,
)
# The line after the indented ones, so that no line of a message passes for it.
_CLASS = re.compile(r"^ +.*\n([A-Za-z_][\w.]*)(?=:|$)", re.M)
_FRAME = re.compile(r'^ *File "([^"]+)", line (\d+)', re.M)
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
    """What is said of an error that is not ours: its class alone, since its message may quote a document."""
    names = _CLASS.findall(str(error)) if _quotes_a_traceback(error) else []
    return str(names[-1]) if names else type(error).__name__


def frames(error: BaseException) -> list[str]:
    """Where an error came from, outermost first, as ``file:line``."""
    told = [f"{name}:{line}" for name, line in _FRAME.findall(str(error))] if _quotes_a_traceback(error) else []
    return [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)] + told


def _quotes_a_traceback(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) or type(error).__module__.startswith("apache_beam.")


def _sentence(message: str) -> str:
    return " ".join(_STEP.sub("", message).split())
