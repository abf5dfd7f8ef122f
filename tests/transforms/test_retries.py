"""Which failures of a store are tried again, told by the exceptions that drivers really raise."""

from __future__ import annotations

import asyncio
import http.client
from collections.abc import Callable
from typing import Any

import aiohttp
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, HTTPClientError
from s3fs.errors import translate_boto_error

from distilbeam.transforms.storage import retries
from distilbeam.transforms.storage.retries import SizeError, http_status, is_transient, retry
from tests.clocks import replace_clock


def answer(status: int, code: str) -> ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")


def test_the_status_that_a_driver_carries() -> None:
    assert http_status(answer(412, "PreconditionFailed")) == 412
    assert http_status(chained(answer(501, "NotImplemented"))) == 501
    assert http_status(OSError(5, "of a disk")) is None


def chained(cause: BaseException) -> OSError:
    error = OSError("it failed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        answer(503, "SlowDown"),
        answer(500, "InternalError"),
        answer(400, "RequestTimeout"),
        answer(429, "TooManyRequests"),
        translate_boto_error(answer(503, "ServiceUnavailable")),
        chained(answer(502, "502")),
        HTTPClientError(error="x"),
        ConnectionResetError(),
        TimeoutError(),
        asyncio.TimeoutError(),
        aiohttp.ClientPayloadError(),
        aiohttp.ServerDisconnectedError(),
        http.client.IncompleteRead(b"half"),
        SizeError("short"),
    ],
)
def test_failures_of_a_moment(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        answer(403, "AccessDenied"),
        answer(400, "ExpiredToken"),
        answer(404, "NoSuchBucket"),
        answer(404, "NoSuchKey"),
        answer(412, "PreconditionFailed"),
        translate_boto_error(answer(412, "PreconditionFailed")),
        translate_boto_error(answer(403, "403")),
        EndpointConnectionError(endpoint_url="http://nowhere"),
        FileNotFoundError("gone"),
        PermissionError("no"),
        OSError(28, "No space left on device"),
        ValueError("503"),
    ],
)
def test_final_failures(error: Exception) -> None:
    assert not is_transient(error)


def failing(times: int, error: Exception, calls: list[int]) -> Callable[[], str]:
    def call() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return call


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    replace_clock(monkeypatch, retries, sleep=found.append)
    return found


def test_tries_five_times_and_waits_longer_each_time(waits: list[float]) -> None:
    calls: list[int] = []
    assert retry(failing(4, ConnectionResetError(), calls)) == "done"
    assert len(calls) == 5
    assert [0.1 * 2**n <= wait <= 0.4 * 2**n for n, wait in enumerate(waits)] == [True] * 4
    calls.clear()
    with pytest.raises(ConnectionResetError):
        retry(failing(5, ConnectionResetError(), calls))
    assert len(calls) == 5


def test_final_failures_are_raised_at_once(waits: list[float]) -> None:
    calls: list[int] = []
    with pytest.raises(PermissionError):
        retry(failing(1, PermissionError(), calls))
    assert (len(calls), waits) == (1, [])


def test_what_a_driver_has_long_tried_is_not_tried_again(waits: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 16.0, 32.0])
    replace_clock(monkeypatch, retries, monotonic=lambda: next(clock), sleep=waits.append)
    calls: list[Any] = []
    with pytest.raises(TimeoutError):
        retry(failing(1, TimeoutError(), calls))
    assert (len(calls), waits) == (1, [])
