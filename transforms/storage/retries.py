"""Calls to a store, made again where the store failed for a moment."""

from __future__ import annotations

import asyncio
import http.client
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

__all__ = ["SizeError", "http_status", "is_transient", "retry"]

T = TypeVar("T")

_TRIES = 5
_FIRST_WAIT = 0.2
# Drivers try again too, s3fs for half a minute; what has lasted so long is not for a moment.
_PATIENCE = 15.0

_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
# Transient for all their status of 400: the request was cut off or altered on its way.
_CODES = frozenset(
    {"BadDigest", "IncompleteBody", "InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown"}
    | {"XAmzContentSHA256Mismatch"}
)
# By name, so that no driver is imported that is not in use. A connection that cannot be made at all is not among them:
# drivers have tried that several times, and it is mostly a wrong endpoint.
_NAMES = frozenset(
    {
        "aiohttp.client_exceptions.ClientPayloadError",
        "aiohttp.client_exceptions.ClientOSError",
        "aiohttp.client_exceptions.ServerDisconnectedError",
        "azure.core.exceptions.IncompleteReadError",
        "azure.core.exceptions.ServiceResponseError",
        "botocore.exceptions.HTTPClientError",
        "botocore.exceptions.IncompleteReadError",
        "botocore.parsers.ResponseParserError",
        "google.auth.exceptions.TransportError",
        "requests.exceptions.ChunkedEncodingError",
        "requests.exceptions.ConnectionError",
        "requests.exceptions.ProxyError",
        "requests.exceptions.ReadTimeout",
        "urllib3.exceptions.IncompleteRead",
        "urllib3.exceptions.ProtocolError",
    }
)
_UNREACHABLE = frozenset(
    {
        "aiohttp.client_exceptions.ClientConnectorError",
        "botocore.exceptions.ConnectTimeoutError",
        "botocore.exceptions.EndpointConnectionError",
        "requests.exceptions.ConnectTimeout",
    }
)
_TYPES = (ConnectionError, TimeoutError, asyncio.TimeoutError, http.client.IncompleteRead)


class SizeError(OSError):
    """A store gave, or keeps, another number of bytes than it must."""


def retry(function: Callable[[], T]) -> T:
    """What a function returns, called up to five times while the store fails for a moment.

    Waits grow from a fifth of a second to about three, with jitter. The function must be harmless to repeat: its last
    call may have been done though its reply was lost.
    """
    start = time.monotonic()
    for attempt in range(1, _TRIES + 1):
        try:
            return function()
        except Exception as error:
            late = time.monotonic() - start > _PATIENCE
            if attempt == _TRIES or late or not is_transient(error):
                raise
        time.sleep(_FIRST_WAIT * 2 ** (attempt - 1) * random.uniform(0.5, 2))  # noqa: S311 - no secret
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Whether a store may answer the same call otherwise in a moment: overload, a lost connection, a cut body.

    What the store has said counts most, then the kind of exception; no permission, no such file or bucket, and a failed
    condition are final.
    """
    chain = list(_causes(error))
    names = {f"{kind.__module__}.{kind.__qualname__}" for each in chain for kind in type(each).__mro__}
    if names & _UNREACHABLE:
        return False
    for each in chain:
        status, code = _answer(each)
        if code in _CODES or status is not None:
            return code in _CODES or status in _STATUSES
    return bool(names & _NAMES) or any(isinstance(each, (SizeError, *_TYPES)) for each in chain)


def http_status(error: BaseException) -> int | None:
    """The status that a store has answered with, if an exception of its driver carries one."""
    statuses = (_answer(each)[0] for each in _causes(error))
    return next((status for status in statuses if status is not None), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(10):
        if current is None:
            return
        yield current
        current = current.__cause__


def _answer(error: BaseException) -> tuple[int | None, str]:
    """HTTP status and error code that an exception of a driver carries, each where it has one."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):  # of botocore
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _number(status), str(response.get("Error", {}).get("Code", ""))
    for holder in (error, response):
        for name in ("status_code", "status", "code"):
            status = _number(getattr(holder, name, None))
            if status is not None:
                return status, ""
    return None, ""


def _number(value: object) -> int | None:
    """An HTTP status of an error, or nothing."""
    text = str(value)
    return int(text) if len(text) == 3 and text.isdecimal() and text[0] in "345" else None
