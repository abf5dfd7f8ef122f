"""The child process of ``isolation``: texts come in through its standard input, outputs leave through the other."""

from __future__ import annotations

import json
import os
import struct
import sys
import threading
import time
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from .distilbert.checkpoint import Checkpoint
from .encoder import Encoder, EngineSettings, Outputs
from .errors import DistilbeamError
from .featurization import FeatureSpec
from .metrics import Live, counting
from .watchdog import WATCHDOG

__all__ = [
    "BEAT",
    "ERROR",
    "HEAD",
    "OUTPUTS",
    "READY",
    "SETTINGS",
    "TEXTS",
    "main",
    "pack_texts",
    "unpack_outputs",
]

SETTINGS, TEXTS = b"S", b"T"
"""Kinds of messages to the child: JSON of what to load; an Arrow IPC stream of texts."""

READY, BEAT, OUTPUTS, ERROR = b"R", b"B", b"O", b"E"
"""And from it: JSON of the model's identity; progress; an Arrow IPC stream of outputs; JSON of an error."""

HEAD = struct.Struct("<cQQ")
"""Head of a message: its kind, the number of the request (from 1; a reply has that of its request), bytes that follow.
"""

_BEAT_SECONDS = 0.05  # between two beats, at least


def pack_texts(texts: pa.Array) -> pa.Buffer:
    """Texts as the bytes of a message."""
    return _stream(pa.record_batch([texts], ["text"]))


def unpack_outputs(data: bytes) -> tuple[Outputs, dict[str, int]]:
    """The outputs in a message, and by how much they raise the counts of ``metrics``."""
    batch = _only(data)
    notes = json.loads(batch.schema.metadata[b"notes"])
    rows, *columns = batch.columns
    good = np.asarray(rows.to_numpy(zero_copy_only=False))
    return Outputs(good, columns, {row: tuple(failure) for row, failure in notes["failed"]}), notes["live"]


def _pack_outputs(outputs: Outputs, live: dict[str, int]) -> pa.Buffer:
    notes = {"failed": list(outputs.failed.items()), "live": live}
    columns = [pa.array(outputs.rows), *outputs.columns]
    batch = pa.record_batch(columns, [str(number) for number in range(len(columns))])
    return _stream(batch.replace_schema_metadata({b"notes": json.dumps(notes).encode()}))


def _stream(batch: pa.RecordBatch) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _only(data: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(data) as reader:
        return reader.read_next_batch()


class _Pipes:
    """The standard input and output, taken away from all that might read or print."""

    def __init__(self) -> None:
        self._source: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._sink: BinaryIO = os.fdopen(os.dup(1), "wb")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nowhere, number)
        self._lock = threading.Lock()
        self._request = 0  # number of the last one
        self._sent = 0.0

    def receive(self) -> bytes | None:
        """The next message; None if there will be no more."""
        head = self._source.read(HEAD.size)
        if len(head) < HEAD.size:
            return None
        _, self._request, length = HEAD.unpack(head)
        data = self._source.read(length)
        return data if len(data) == length else None

    def send(self, kind: bytes, data: bytes | pa.Buffer = b"") -> None:
        with self._lock:
            self._sink.write(HEAD.pack(kind, self._request, len(data)))
            self._sink.write(data)
            self._sink.flush()
            self._sent = time.monotonic()

    def beat(self) -> None:
        if time.monotonic() - self._sent > _BEAT_SECONDS:
            self.send(BEAT)


def main() -> int:
    """Serve until the parent closes the pipe."""
    parent = os.getppid()
    pipes = _Pipes()
    threading.Thread(target=_follow, args=(parent,), name="distilbeam-follow", daemon=True).start()
    try:
        return _serve(pipes)
    except Exception as error:
        # The message of an error that is not ours may quote a text.
        message = str(error) if isinstance(error, DistilbeamError) else ""
        pipes.send(ERROR, json.dumps({"class": type(error).__name__, "message": message}).encode())
        return 1


def _serve(pipes: _Pipes) -> int:
    request = pipes.receive()
    if request is None:
        return 0
    settings = json.loads(request)
    spec = _spec(settings["spec"])
    engine = EngineSettings(**settings["engine"])
    encoder = Encoder(Checkpoint.open(settings["model"], engine.model_sha256), engine)
    probe = encoder.outputs([""], spec)
    for _, error, reason in probe.failed.values():
        raise DistilbeamError(f"the model fails on an empty text ({error}): {reason}")
    pipes.send(READY, json.dumps(encoder.identity(spec)).encode())
    WATCHDOG.listen(pipes.beat)
    while (request := pipes.receive()) is not None:
        pipes.beat()
        with counting(Live()) as live:
            outputs = encoder.outputs(_only(request).column(0), spec)
        pipes.send(OUTPUTS, _pack_outputs(outputs, live.read()))
    return 0


def _spec(fields: dict[str, Any]) -> FeatureSpec:
    spec: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    return FeatureSpec(**spec)


def _follow(parent: int) -> None:
    """End when the parent has ended, whatever this process is doing."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main())
