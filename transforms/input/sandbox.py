"""Parquet, Arrow IPC and Avro files are decoded in a process of their own.

Untrusted bytes can crash the decoder or fill the memory.

A few bytes of Parquet can stand for gigabytes, and footers and pages may lie about their sizes. ``decoder`` runs
there. Its memory is limited (``RLIMIT_AS``), and so is the time it may compute without a sign of life; when it
dies, that is an error of the file it was at, and another process takes the next file. Processes are kept for the next
file, and die with this one.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import pyarrow as pa

from distilbeam.transforms.checks import check_system

from .decoder import HEADER, receive

__all__ = ["DecoderError", "Message", "Sandbox", "batch_of", "close", "decode", "warm"]

_MODULE = __name__.rpartition(".")[0] + ".decoder"
_STALL = 300.0  # seconds to wait for a sign of life, computing or not
_IDLE = 2  # processes that are kept
_PLACE = struct.Struct("<QQ")
# The decoder needs no other variables, least of all credentials.
_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL", "PYTHONHOME", "VIRTUAL_ENV")

Message = tuple[bytes, bytes]


class DecoderError(Exception):
    """What became of the decoder or what it says of the file: a sentence without any of the file's contents."""


class _Process:
    """A decoder and the socket to it."""

    def __init__(self) -> None:
        check_system("Parquet, Arrow and Avro files are decoded in a process with limits")
        here, there = socket.socketpair()
        environment = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
        environment |= {
            "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
            "PYTHONDONTWRITEBYTECODE": "1",
            # What malloc gives back must not count against the limit, nor arenas and threads that are never used.
            "ARROW_DEFAULT_MEMORY_POOL": "system",
            "MALLOC_ARENA_MAX": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        try:
            with there:
                self._process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", _MODULE, str(there.fileno())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=environment,
                    pass_fds=[there.fileno()],
                )
        except BaseException:
            here.close()
            raise
        here.settimeout(_STALL)
        self._socket = here
        self.pid = self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, request: dict[str, Any], descriptor: int | None, fetch: Callable[[int, int], bytes]
    ) -> Iterator[Message]:
        """Puts a request and gives the answers, up to ``D``.

        What ``fetch`` raises comes out as it is: a lost connection to a store says nothing of the file.

        Raises:
            DecoderError: the process has died, or says that the file cannot be decoded.
            OSError: the file on this machine cannot be read.
        """
        body = json.dumps(request).encode()
        head = HEADER.pack(b"Q", len(body))
        with self._talking():
            if descriptor is None:
                self._socket.sendall(head)
            else:
                socket.send_fds(self._socket, [head], [descriptor])
            self._socket.sendall(body)
        failure: Exception | None = None
        while True:
            with self._talking():
                message = receive(self._socket, False)
            if message is None:
                raise DecoderError(self._cause_of_death())
            kind, body, _ = message
            if kind == b"R":
                data = fetch(*_PLACE.unpack(body))
                with self._talking():
                    self._socket.sendall(HEADER.pack(b"R", len(data)))
                    self._socket.sendall(data)
            elif kind == b"E":
                failure = _told(json.loads(body), request["memory"])
            else:
                yield kind, body
                if kind == b"D":
                    if failure is not None:
                        raise failure
                    return

    def close(self) -> None:
        """Ends the process."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    @contextmanager
    def _talking(self) -> Iterator[None]:
        """Takes what fails for the end of the decoder; only what uses the socket belongs inside."""
        try:
            yield
        except TimeoutError:
            self.close()
            raise DecoderError(f"its decoder gave no sign of life for {_STALL:.0f} s") from None
        except ConnectionError:
            raise DecoderError(self._cause_of_death()) from None

    def _cause_of_death(self) -> str:
        try:
            code = self._process.wait(5)
        except subprocess.TimeoutExpired:
            return "its decoder went away"
        if code == -signal.SIGXCPU:
            return "its decoder computed for 10 s and came no further, as it does for damaged or hostile files"
        if code < 0:
            name = f"signal {-code}"  # those of real time have no names
            with suppress(ValueError):
                name = signal.Signals(-code).name
            return f"its decoder was ended by {name}, as it is by damaged or hostile files, or for want of memory"
        return f"its decoder ended with status {code}"


def _told(failure: dict[str, Any], memory: int) -> Exception:
    if "errno" in failure:
        return OSError(failure["errno"], os.strerror(failure["errno"]))
    if "reason" in failure:
        return DecoderError(failure["reason"])
    if "memory" in failure:
        return DecoderError(
            f"it takes more memory to decode than `decode_bytes={memory}` allows, as bombs do; if the file is sound, "
            "raise `decode_bytes`, or write it anew in smaller pieces"
        )
    return DecoderError(f"it is damaged, or Arrow cannot read what it holds ({failure['error']})")


class Sandbox:
    """The decoders of this process, which any thread may use at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Process] = []
        self._busy: set[_Process] = set()
        self._owner = os.getpid()

    def decode(
        self, request: dict[str, Any], stream: BinaryIO | None = None, fetch: Callable[[int, int], bytes] | None = None
    ) -> Iterator[Message]:
        """What a decoder answers to a request.

        Args:
            request: what to do; ``memory`` are the bytes it may take.
            stream: the file on this machine, or
            fetch: what gives up to some bytes from an offset; what it raises comes out as it is.

        Raises:
            DecoderError: the file cannot be decoded.
            OSError: the file on this machine cannot be read.
        """
        process = self._taken()
        again = False
        try:
            descriptor = None if stream is None else stream.fileno()
            for kind, body in process.ask(request, descriptor, fetch or _nothing):
                again = kind == b"D" and body == b"again"
                yield kind, body
        finally:
            self._give_back(process, again)

    def warm(self) -> None:
        """Starts a decoder unless one waits, so that the first file need not wait for it."""
        with self._lock:
            self._disown()
            if self._idle:
                return
        process = _Process()
        with self._lock:
            if not self._idle:
                self._idle.append(process)
                return
        process.close()

    def close(self) -> None:
        """Ends all decoders."""
        with self._lock:
            self._disown()
            for process in (*self._idle, *self._busy):
                process.close()
            self._idle, self._busy = [], set()

    def _taken(self) -> _Process:
        with self._lock:
            self._disown()
            while self._idle and not self._idle[-1].is_alive:
                self._idle.pop().close()
            process = self._idle.pop() if self._idle else None
        process = process or _Process()  # other threads need not wait for it
        with self._lock:
            self._busy.add(process)
        return process

    def _give_back(self, process: _Process, again: bool) -> None:
        with self._lock:
            self._busy.discard(process)
            if again and len(self._idle) < _IDLE and self._owner == os.getpid():
                self._idle.append(process)
                return
        process.close()
        if not again:
            self.warm()  # there may be more files

    def _disown(self) -> None:
        """A process that was forked off this one must not use its decoders."""
        if self._owner != os.getpid():
            self._idle, self._busy, self._owner = [], set(), os.getpid()


def _nothing(offset: int, length: int) -> bytes:
    return b""


_SANDBOX = Sandbox()
decode = _SANDBOX.decode
warm = _SANDBOX.warm
close = _SANDBOX.close
atexit.register(close)


def batch_of(body: bytes) -> pa.RecordBatch:
    """The batch in a message."""
    with pa.ipc.open_stream(pa.py_buffer(body)) as reader:
        batch = reader.read_next_batch()
    batch.validate()
    return batch
