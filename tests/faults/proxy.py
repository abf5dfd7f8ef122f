"""A proxy before an S3 server on this machine that harms requests, by chance from a seed or where it is told to."""

from __future__ import annotations

import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FAULTS", "FaultyProxy", "Request"]

_ANSWERS = {
    "503": (503, b"SlowDown"),
    "500": (500, b"InternalError"),
    "expired": (400, b"ExpiredToken"),
    "forbidden": (403, b"AccessDenied"),
}
FAULTS = ("503", "500", "reset", "lost reply", "cut body", "slow body")
"""``503`` and ``500`` are answered, and ``reset`` is done, without asking the server; ``lost reply`` resets once the
server has done what it was asked; ``cut body`` does so half-way through its answer; ``slow body`` takes its time."""

_SLOW = 0.3
_ERROR = b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>%s</Code><Message>injected by a test</Message></Error>'


@dataclass(frozen=True, slots=True)
class Request:
    """What was asked: method, path with query, headers in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]


@dataclass
class FaultyProxy:
    """Stands between clients and ``host:port``; use as a context manager.

    Attributes:
        rates: chance of each fault for one request.
        harms: asked first; gives the fault for a request, or None to leave it to chance.
        injected: how often each fault has happened.
        seen: all requests, each with its fault or an empty text.
    """

    host: str
    port: int
    rates: dict[str, float] = field(default_factory=dict)
    seed: int = 0
    harms: Callable[[Request], str | None] = lambda request: None
    injected: Counter[str] = field(default_factory=Counter)
    seen: list[tuple[Request, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reset(self.seed)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def url(self) -> str:
        """Endpoint for clients."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FaultyProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def reset(self, seed: int = 0, rates: dict[str, float] | None = None) -> None:
        """Begins anew with another seed; without rates no harm is done by chance."""
        self.rates = self.rates if rates is None else rates
        self.harms = lambda request: None
        self.injected.clear()
        self.seen.clear()
        self._random = random.Random(seed)

    def fault(self, request: Request) -> str:
        """The fault that this request meets; counted where it happens."""
        with self._lock:
            fault = self.harms(request) or ""
            if not fault:
                chance = self._random.random()
                for name, rate in self.rates.items():
                    if chance < rate:
                        fault = name
                        break
                    chance -= rate
            self.seen.append((request, fault))
        return fault

    def count(self, fault: str) -> None:
        with self._lock:
            self.injected[fault] += 1


class _Handler(BaseHTTPRequestHandler):
    proxy: FaultyProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self._body(headers)
        request = Request(self.command, self.path, headers)
        fault = self.proxy.fault(request)
        if fault in _ANSWERS:
            self.proxy.count(fault)
            status, code = _ANSWERS[fault]
            self._answer(status, _ERROR % code)
            return
        if fault == "reset":
            self.proxy.count(fault)
            self._reset()
            return
        status, answered, data = self._forward(body)
        if fault == "cut body" and (len(data) < 2 or self.command == "HEAD"):
            fault = "lost reply"  # there is no body to cut
        if fault == "lost reply":
            self.proxy.count(fault)
            self._reset()
            return
        self.send_response(status)
        for name, value in answered:
            self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if fault == "cut body":
            self.proxy.count(fault)
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            time.sleep(0.02)  # so that the half arrives
            self._reset()
        elif fault == "slow body":
            self.proxy.count(fault)
            for piece in range(3):
                time.sleep(_SLOW / 3)
                self.wfile.write(data[len(data) * piece // 3 : len(data) * (piece + 1) // 3])
                self.wfile.flush()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "chunked" not in headers.get("transfer-encoding", ""):
            return self.rfile.read(int(headers.get("content-length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(self.proxy.host, self.proxy.port, timeout=60)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            dropped = ("connection", "transfer-encoding", "content-length", "expect")
            for name, value in self.headers.items():
                if name.lower() not in dropped:
                    connection.putheader(name, value)
            connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            dropped = ("connection", "transfer-encoding", "date", "server") + (
                () if self.command == "HEAD" else ("content-length",)
            )
            return response.status, [pair for pair in response.getheaders() if pair[0].lower() not in dropped], data
        finally:
            connection.close()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _reset(self) -> None:
        """Closes so that the other side sees a reset, not an end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def finish(self) -> Any:
        with suppress(OSError):  # it was reset
            super().finish()
