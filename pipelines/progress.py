"""Watching a job that runs in this process."""

from __future__ import annotations

import html
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from types import TracebackType
from typing import Any, Protocol, TextIO

from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.splits import Split
from distilbeam.transforms.metrics import Live, count
from distilbeam.transforms.output.increments import is_covered
from distilbeam.transforms.output.ledger import Ledger

__all__ = ["TITLES", "Planned", "Progress", "duration", "in_notebook"]

TITLES = {"embed": "embedding", "classify": "classifying", "tokenize": "tokenizing", "featurize": "featurizing"}
"""What each command does."""

_LOG_SECONDS = 10.0


FINISHED: dict[str, frozenset[str]] = {}
"""Ids of the splits that a job of this process found finished in its output."""


@dataclass(frozen=True)
class Planned:
    """Stands between the reader and the ledger to note how much there is to do.

    Attributes:
        ledger: tells the plan, and what of it is done.
        job: what ``FINISHED`` knows this run by.
    """

    ledger: Ledger
    job: str = ""

    def plan(self, settings: ReadSettings) -> list[tuple[Split, bool]]:
        """The plan, as ``Ledger.plan``."""
        plan = self.ledger.plan(settings)
        todo = [split for split, finished in plan if not finished]
        done = sum(finished and not is_covered(split.id) for split, finished in plan)
        count(planned=1, planned_bytes=sum(split.size for split in todo), finished_splits=done)
        count(planned_splits=len(todo))
        FINISHED[self.job] = frozenset(split.id for split, finished in plan if finished)
        return plan

    def begin(self, split: str) -> int:
        """Notes that work on a split begins, as ``Ledger.begin``."""
        return self.ledger.begin(split)

    def end(self, split: str) -> None:
        """Notes that it has ended, as ``Ledger.end``."""
        self.ledger.end(split)


@dataclass(frozen=True, slots=True)
class State:
    """How far a job is.

    Attributes:
        phase: what it is doing, in a word or two.
        rows: texts done.
        tokens: tokens done.
        speed: tokens a second; None while it is too early to tell.
        done: share of the bytes that are done, 0 to 1; None while it is not known.
        left: seconds until the end, if the rest goes as fast; None while it is too early to tell.
    """

    phase: str
    rows: int
    tokens: int
    speed: float | None = None
    done: float | None = None
    left: float | None = None

    def words(self) -> list[str]:
        """The figures as they are shown."""
        if not self.rows:
            return [self.phase]
        told = [f"{self.done:.0%}"] if self.done is not None else []
        told.append(f"{self.rows:,} rows")
        if self.speed is not None:
            told.append(f"{self.speed:,.0f} tokens/s")
        if self.left is not None:
            told.append(f"{duration(self.left)} left")
        return told


class _View(Protocol):
    every: float

    def show(self, state: State) -> None: ...
    def close(self) -> None: ...


class Progress:
    """Shows a job's progress while the ``with`` block runs.

    Args:
        how: ``bar``, ``log``, ``none``, or ``auto``: a bar in a notebook and on a terminal, log lines elsewhere.
        title: what the job does.
        live: its counts, if there are any already.
        stream: where to show it, standard error if not given.

    Attributes:
        live: the counts of the job.
    """

    def __init__(self, how: str, title: str, stream: TextIO | None = None, live: Live | None = None) -> None:
        self.live = live or Live()
        notebook = stream is None and in_notebook()
        stream = stream or sys.stderr
        if how == "auto":
            how = "bar" if notebook or stream.isatty() else "log"
        self._view: _View | None = None
        if how == "bar":
            self._view = _Cell(title) if notebook else _Bar(title, stream)
        elif how == "log":
            self._view = _Log(title, stream)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
        self._first: tuple[float, int, float] | None = None  # seconds, tokens and share of the first look
        self._last = 0.0, 0, 0.0  # and of the last one that saw something new
        self._finished = self._texts = 0

    def __enter__(self) -> Progress:
        if self._view:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop showing, and give the terminal back."""
        self._stop.set()
        if self._view:
            self._thread.join()

    def state(self) -> State:
        """How far the job is now."""
        counts, now = self.live.read(), time.monotonic()
        rows, tokens, done = counts["rows"], counts["tokens"], self._done(counts)
        if not rows:
            waiting = "loading the model" if counts["planned_splits"] else "nothing to read, checking the output"
            return State(waiting if counts["planned"] else "starting", rows, tokens)
        if self._first is None:
            # What was done before the first look took a time that is not known.
            self._first = self._last = now, tokens, done or 0.0
        if tokens > self._last[1]:
            # Between two micro-batches nothing gets slower.
            self._last = now, tokens, done or 0.0
        spent, gained, moved = (last - first for last, first in zip(self._last, self._first, strict=True))
        if spent < 1:
            return State("running", rows, tokens, done=done)
        left = max(0.0, spent * (1 - self._last[2]) / moved - (now - self._last[0])) if moved > 0 else None
        return State("running", rows, tokens, gained / spent, done, left)

    def _done(self, counts: Counter[str]) -> float | None:
        """Share of the planned bytes that are done, where those of the batch at hand are told from its tokens."""
        if not counts["planned_bytes"] or not counts["read_tokens"]:
            return None
        if counts["finished_bytes"] > self._finished:
            # Finished splits tell how much of a file is text.
            self._finished, self._texts = counts["finished_bytes"], counts["read_bytes"]
        texts = counts["read_bytes"] * counts["tokens"] / counts["read_tokens"]
        scale = self._finished / self._texts if self._texts else 1.0
        return min(1.0, texts * scale / counts["planned_bytes"])

    def _watch(self) -> None:
        assert self._view
        try:
            while not self._stop.wait(self._view.every):
                self._view.show(self.state())
        finally:
            self._view.close()


class _Log:
    """A plain line now and then."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self.every = _LOG_SECONDS
        self._title, self._stream = title, stream

    def show(self, state: State) -> None:
        self._stream.write(f"{time.strftime('%H:%M:%S')} {self._title}: {', '.join(state.words())}\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class _Bar:
    """A bar on a terminal, with rows, tokens a second and the time left."""

    every = 0.1

    def __init__(self, title: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[figures]}"),
            console=Console(file=stream, force_terminal=True),
            transient=True,
            expand=True,
        )
        self._title = title
        self._task = self._bar.add_task(title, total=None, figures="starting")
        self._bar.start()

    def show(self, state: State) -> None:
        total = 1.0 if state.done is not None and state.rows else None
        self._bar.update(self._task, completed=state.done or 0.0, total=total, figures="  ".join(state.words()))

    def close(self) -> None:
        self._bar.stop()


class _Cell:
    """A bar below the cell of a notebook, of plain HTML, since what widgets need is not in every one."""

    every = 0.25

    def __init__(self, title: str) -> None:
        display: Any = import_module("IPython.display")
        self._title = title
        self._handle = display.DisplayHandle()
        self._handle.display(self._shown("starting"), raw=True)

    def show(self, state: State) -> None:
        self._handle.update(self._shown(", ".join(state.words()), state.done if state.rows else None), raw=True)

    def close(self) -> None:
        self._handle.update({"text/plain": "", "text/html": ""}, raw=True)

    def _shown(self, figures: str, done: float | None = None) -> dict[str, str]:
        value = "" if done is None else f' value="{done:.4f}"'
        told = f"{self._title}: {figures}"
        return {"text/plain": told, "text/html": f"<progress{value}></progress> {html.escape(told)}"}


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shell = get_ipython()
    return shell is not None and "IPKernelApp" in shell.config


def duration(seconds: float) -> str:
    """Seconds as people read them: ``4.2 s``, ``3:07``, ``2:15:00``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
