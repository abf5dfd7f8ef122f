"""The process that decodes Parquet, Arrow IPC and Avro for ``sandbox``.

It may crash, or run out of its memory, and nothing else will.

It holds no credentials and opens no files: the bytes come through a descriptor or through the socket. Started as
``python -m distilbeam.transforms.input.decoder FD``; importing it starts nothing.

Messages are a letter, a length (uint64, little endian) and that many bytes. To this process: ``Q`` a request (JSON,
perhaps with a descriptor), ``R`` the bytes it has asked for. From it: ``R`` asks for bytes (offset and length, uint64),
``S`` a schema, ``N`` ranges of rows (JSON), ``B`` a batch as an IPC stream of its own, ``T`` nothing but that it is
alive, ``E`` an error (JSON, with ``errno`` where the disk is at fault and not the file), and at last ``D``, with
``again`` if it can take another request.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa

from .containers import buffered, open_container, read_container
from .decoding import Damaged, Source, Times, allowance, int96_columns, look, open_file, read_rows
from .nested import roots

with contextlib.suppress(ImportError):  # on Windows the other end refuses to start this process
    import fcntl
    import resource

__all__ = ["HEADER", "main", "receive"]

HEADER = struct.Struct("<cQ")
_PLACE = struct.Struct("<QQ")
_CPU_SECONDS = 10  # to compute without a sign of life
_LEFT_OVER = 64 << 20  # bytes, after which a fresh process takes the next file


class _Worker:
    """The far end of the socket."""

    def __init__(self, connection: socket.socket):
        self._connection = connection
        self._base = _address_space()
        self._hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._errno = 0  # of the disk, for the file at hand

    def serve(self) -> None:
        while (message := receive(self._connection, True)) is not None:
            _, body, descriptor = message
            request = json.loads(body)
            failure: dict[str, Any] | None = None
            self._errno = 0
            try:
                self._limit(request["memory"])
                self._answer(request, descriptor)
            except Damaged as error:
                failure = {"reason": str(error)}
            except MemoryError:
                failure = {"memory": True}
            except ConnectionError:
                return
            except Exception as error:
                # The message of a library may quote what it has read.
                failure = {"error": type(error).__name__}
            finally:
                if descriptor is not None:
                    os.close(descriptor)
            self._limit(None)
            if self._errno:
                failure = {"errno": self._errno}
            if failure is not None:
                self._send(b"E", json.dumps(failure).encode())
            pa.default_memory_pool().release_unused()
            # What a file leaves behind would count for the next.
            again = _address_space() - self._base < _LEFT_OVER
            self._send(b"D", b"again" if again else b"")
            if not again:
                return

    def _answer(self, request: dict[str, Any], descriptor: int | None) -> None:
        self._alive()
        size = request["size"]
        fetch = self._fetch
        if descriptor is not None:
            fetch = partial(self._read, descriptor)
        if request["format"] != "parquet":
            self._answer_of_container(request, fetch, size)
            return
        file = open_file(Source(fetch, size), size, request["buffer"])
        if request["what"] == "look":
            schema, found = look(file, request["columns"], request["split_bytes"], size, self._alive)
            self._send(b"S", schema.serialize().to_pybytes())
            self._send(b"N", json.dumps(found).encode())
            return
        self._limit(request["memory"] + allowance(file.metadata, request["columns"], size))
        times = None
        if int96_columns(file).intersection(roots(file.schema_arrow, request["columns"])):
            exact = open_file(Source(fetch, size), size, request["buffer"], "ns")
            times = Times(exact, request["columns"], request["nanoseconds"])
        read_rows(
            file,
            request["start"],
            request["stop"],
            request["columns"],
            batch_rows=request["batch_rows"],
            batch_bytes=request["batch_bytes"],
            send=self._send_batch,
            alive=self._report,
            times=times,
        )

    def _answer_of_container(self, request: dict[str, Any], fetch: Callable[[int, int], bytes], size: int) -> None:
        """As ``_answer``, for Arrow IPC and Avro."""
        container = open_container(request["format"], buffered(fetch, size, request["buffer"]), size, self._alive)
        if request["what"] == "look":
            found = container.ranges(request["columns"], request["split_bytes"])
            self._send(b"S", container.schema.serialize().to_pybytes())
            self._send(b"N", json.dumps(found).encode())
            return
        self._limit(request["memory"] + container.allowance(request["columns"]))
        read_container(
            container,
            request["start"],
            request["stop"],
            request["columns"],
            batch_rows=request["batch_rows"],
            batch_bytes=request["batch_bytes"],
            send=self._send_batch,
            alive=self._report,
        )

    def _send(self, kind: bytes, body: Any) -> None:
        self._connection.sendall(HEADER.pack(kind, len(body)))
        self._connection.sendall(body)

    def _send_batch(self, batch: pa.RecordBatch) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._send(b"B", memoryview(sink.getvalue()))
        self._alive()

    def _report(self) -> None:
        self._send(b"T", b"")
        self._alive()

    def _read(self, descriptor: int, offset: int, length: int) -> bytes:
        try:
            return os.pread(descriptor, length, offset)
        except OSError as error:
            if offset >= 0:  # a footer may lie so that it is not
                self._errno = error.errno or errno.EIO
            raise

    def _fetch(self, offset: int, length: int) -> bytes:
        self._send(b"R", _PLACE.pack(offset, length))
        message = receive(self._connection, False)
        if message is None:
            raise SystemExit
        return message[1]

    def _alive(self) -> None:
        """Begins anew to count the seconds of computing after which the kernel ends this process."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime) + 1 + _CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))

    def _limit(self, memory: int | None) -> None:
        soft = self._hard if memory is None else self._base + memory
        if self._hard != resource.RLIM_INFINITY:
            soft = min(soft, self._hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, self._hard))


def receive(connection: socket.socket, descriptors: bool) -> tuple[bytes, bytes, int | None] | None:
    """The next message: its letter, its bytes, and a descriptor if one came along; None at the end."""
    head = b""
    fds: list[int] = []
    while len(head) < HEADER.size:
        if descriptors and not head:
            data, fds, _, _ = socket.recv_fds(connection, HEADER.size, 1)
        else:
            data = connection.recv(HEADER.size - len(head))
        if not data:
            return None
        head += data
    kind, length = HEADER.unpack(head)
    body = bytearray(length)
    view = memoryview(body)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return kind, bytes(body) if length < 1 << 16 else body, fds[0] if fds else None  # type: ignore[return-value]


def _address_space() -> int:
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux; its limit on addresses is not held either
        return 1 << 40


def _die_with_parent() -> None:
    """Ends this process once the other end of its standard input is closed, whatever it is at then.

    Not by PR_SET_PDEATHSIG, which tells of the end of the thread that has started this process.
    """
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)


def main() -> None:
    """Serves the socket whose descriptor the command line names, until it is closed."""
    _die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold documents
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    with socket.socket(fileno=int(sys.argv[1])) as connection, contextlib.suppress(ConnectionError):
        _Worker(connection).serve()


if __name__ == "__main__":
    main()
