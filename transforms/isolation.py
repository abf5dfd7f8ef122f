"""An encoder in a process of its own, for rows that may end or stall the process they are computed in.

The worker hands texts to a child process through a pipe, as Arrow IPC, and finds the row that kills it by halving.
"""

from __future__ import annotations

import json
import logging
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from . import errors
from .encoder import EngineSettings, Outputs
from .errors import DistilbeamError
from .featurization import FeatureSpec
from .halving import find_failing
from .isolated import BEAT, ERROR, HEAD, OUTPUTS, READY, SETTINGS, TEXTS, pack_texts, unpack_outputs
from .metrics import count
from .watchdog import WATCHDOG

__all__ = ["IsolatedEncoder"]

_log = logging.getLogger(__name__)

# Rows that are handed over at once: a row that hangs costs the stall timeout about log2 of it times.
_ROWS = 64
_BYTES = 4 << 20
# So many rows that each kill a child, with none in between that does not, are not the rows' fault.
_HOPELESS = 16
_ALONE = " on this row alone"


class _FailedError(Exception):
    """The child has died or made no progress; why, as error class and reason of a reject."""


class IsolatedEncoder:
    """What ``Encoder`` does for ``featurize``, in a child process; calls from several threads take turns.

    Args:
        model: as for ``Encoder.load``.
        engine: where and how the model runs.
        spec: the features.
        stall_timeout: seconds without progress after which the child is killed; 0 for never.
    """

    _shared: ClassVar[dict[tuple[str, EngineSettings, FeatureSpec, float], IsolatedEncoder]] = {}
    _shared_lock = threading.Lock()

    def __init__(self, model: str, engine: EngineSettings, spec: FeatureSpec, stall_timeout: float) -> None:
        self._settings = {"model": model, "engine": asdict(engine), "spec": asdict(spec)}
        self._stall_timeout = stall_timeout
        self._child: _Child | None = None
        self._identity: dict[str, Any] = {}
        self._deaths = 0  # of rows alone, since the last rows that came through
        self._lock = threading.Lock()
        self._users = 0

    @classmethod
    def shared(cls, model: str, engine: EngineSettings, spec: FeatureSpec, stall_timeout: float) -> IsolatedEncoder:
        """The one of this process for these arguments, until ``release``; one child serves all who asked for it."""
        with cls._shared_lock:
            key = (model, engine, spec, stall_timeout)
            encoder = cls._shared.setdefault(key, cls(*key))
            encoder._users += 1
            return encoder

    def release(self) -> None:
        """Undoes one ``shared``; the last one ends the child."""
        with self._shared_lock:
            self._users -= 1
            if not self._users:
                self.close()

    def close(self) -> None:
        """Ends the child, if there is one; the next texts start another."""
        with WATCHDOG.holding(self._lock):
            self._end()

    def identity(self, spec: FeatureSpec) -> dict[str, Any]:
        """As ``Encoder.identity``."""
        with WATCHDOG.holding(self._lock):
            self._running()
            return self._identity

    def outputs(self, texts: pa.Array, spec: FeatureSpec) -> Outputs:
        """As ``Encoder.outputs``; a row that alone kills or stalls the child fails as ``WorkerDied``, ``StallTimeout``.

        Args:
            texts: string[rows] without nulls.
            spec: that of this encoder.

        Raises:
            DistilbeamError: the child cannot be started, or dies whatever it is given.
        """
        pieces: list[Outputs] = []

        def attempt(rows: npt.NDArray[np.int64]) -> tuple[str, str, str] | None:
            start = int(rows[0])
            part = self._try(texts.slice(start, len(rows)))
            if not isinstance(part, Outputs):
                return part
            failed = {start + row: failure for row, failure in part.failed.items()}
            pieces.append(Outputs(part.rows + start, part.columns, failed))
            return None

        with WATCHDOG.holding(self._lock):
            failed: dict[int, tuple[str, str, str]] = {}
            for rows in _pieces(texts):
                failed |= find_failing(rows, attempt)
            if not pieces:
                pieces.append(self._ask(texts.slice(0, 0)))  # for the types of the columns
        for piece in pieces:
            failed |= piece.failed
        columns = [pa.concat_arrays(list(parts)) for parts in zip(*(piece.columns for piece in pieces), strict=True)]
        return Outputs(np.concatenate([piece.rows for piece in pieces]), columns, failed)

    def _try(self, texts: pa.Array) -> Outputs | tuple[str, str, str]:
        """The outputs, or why there are none; a row that is alone and kills the child is tried twice."""
        for last in (len(texts) > 1, True):
            try:
                outputs = self._ask(texts)
            except _FailedError as failure:
                error, reason = failure.args
                if not last and error == "WorkerDied":
                    continue
                if len(texts) == 1:
                    self._deaths += 1
                    if self._deaths >= _HOPELESS:
                        raise DistilbeamError(
                            f"each of the last {self._deaths} rows that were tried alone failed ({error}: {reason}); "
                            "not the rows but the model or this machine must be to blame"
                        ) from None
                else:
                    _log.warning(
                        "%d rows failed in a process of their own (%s) and are halved",
                        len(texts),
                        reason.removesuffix(_ALONE),
                    )
                return "worker", error, reason
            self._deaths = 0
            return outputs
        raise AssertionError("unreachable")

    def _ask(self, texts: pa.Array) -> Outputs:
        child = self._running()
        try:
            child.send(TEXTS, pack_texts(texts))
            outputs, live = unpack_outputs(child.receive(OUTPUTS, self._stall_timeout))
        except BaseException:  # whatever it is, the reply is still to come, and must not be taken for the next one
            self._end()
            raise
        count(**live)
        return outputs

    def _running(self) -> _Child:
        """The child, ready to work: it has the model, and has run it on an empty text."""
        for last in (False, True):
            if self._child is not None and self._child.alive:
                return self._child
            self._end()
            child = self._child = _Child()
            try:
                with WATCHDOG.paused():  # to fetch and load a model may take long
                    child.send(SETTINGS, json.dumps(self._settings).encode())
                    self._identity = json.loads(child.receive(READY, 0))
                return child
            except _FailedError as failure:
                self._end()
                if last:
                    raise DistilbeamError(
                        "the model cannot be run in a process of its own, not even on an empty text: "
                        f"{failure.args[1].removesuffix(_ALONE)}"
                    ) from None
            except BaseException:
                self._end()
                raise
        raise AssertionError("unreachable")

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """A running ``python -m distilbeam.transforms.isolated``."""

    def __init__(self) -> None:
        # What it prints, or a panic in it, may quote a text, so that goes nowhere.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "distilbeam.transforms.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self._received = bytearray()
        self._request = 0  # number of the last one

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, kind: bytes, data: bytes | pa.Buffer) -> None:
        """Makes a request."""
        assert self._process.stdin
        self._request += 1
        try:
            self._process.stdin.write(HEAD.pack(kind, self._request, len(data)))
            self._process.stdin.write(data)
            self._process.stdin.flush()
        except OSError:
            raise self._dead() from None

    def receive(self, wanted: bytes, stall_timeout: float) -> bytes:
        """The reply to the last request, which is of this kind; any message is progress."""
        progress = time.monotonic()
        while True:
            message = self._next(progress + stall_timeout if stall_timeout else None)
            if message is None:
                raise _FailedError("StallTimeout", f"no progress for {stall_timeout:g} seconds{_ALONE}")
            progress = time.monotonic()
            kind, request, data = message
            if kind == BEAT:
                continue
            if request != self._request:
                raise DistilbeamError(
                    f"the process that computes rows apart answered request {request} and not {self._request}; "
                    "nothing was taken from it: run the job again with `if_exists='resume'`"
                )
            if kind == ERROR:
                raise _raised(json.loads(data))
            assert kind == wanted
            return data

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was to be written is lost with it
                assert pipe
                pipe.close()

    def _next(self, deadline: float | None) -> tuple[bytes, int, bytes] | None:
        """Kind, request and data of the next message, or None if it does not come in time."""
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        while True:
            if len(self._received) >= HEAD.size:
                kind, request, length = HEAD.unpack_from(self._received)
                end = HEAD.size + length
                if len(self._received) >= end:
                    data = bytes(self._received[HEAD.size : end])
                    del self._received[:end]
                    return kind, request, data
            left = 1.0 if deadline is None else min(1.0, deadline - time.monotonic())
            if left <= 0:
                return None
            if deadline is not None:
                WATCHDOG.beat()  # it is the child that may hang, and it is watched here
            if _readable(pipe, left):
                data = os.read(pipe, 1 << 20)
                if not data:
                    raise self._dead()
                self._received += data

    def _dead(self) -> _FailedError:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.poll()
        if code is None:
            how = "a closed pipe"
        elif code >= 0:
            how = f"exit code {code}"
        else:
            how = f"signal {-code}"
            with suppress(ValueError):
                how += f", {signal.Signals(-code).name}"
        return _FailedError("WorkerDied", f"the process ended with {how}{_ALONE}")


def _readable(pipe: int, seconds: float) -> bool:
    """Whether there is something to read, or the end, within some time; for descriptors above 1023 too."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        return bool(selector.select(seconds))


def _raised(error: dict[str, str]) -> Exception:
    """What the child has raised: an error of ours as it was, of others the class alone."""
    kind = getattr(errors, error["class"], None)
    if isinstance(kind, type) and issubclass(kind, DistilbeamError):
        return kind(error["message"])
    return DistilbeamError(f"the model cannot be run in a process of its own: it failed with {error['class']}")


def _pieces(texts: pa.Array) -> list[npt.NDArray[np.int64]]:
    """The positions of the texts in pieces of bounded rows and bytes."""
    rows = np.arange(len(texts), dtype=np.int64)
    if not len(rows):
        return []
    sizes = pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64)
    piece = np.maximum((np.cumsum(sizes) - 1) // _BYTES, rows // _ROWS)
    return np.split(rows, np.flatnonzero(np.diff(piece)) + 1)
