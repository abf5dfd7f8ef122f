"""Keeping back what Beam writes to the log that tells a user nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["tracebacks_kept_back", "warnings_of_imports_kept_back"]

# What logs, with its traceback, an error that the runner raises besides.
_LOGGERS = tuple(
    f"apache_beam.runners.{name}"
    for name in (
        "common",
        "portability.fn_api_runner.fn_runner",
        "portability.local_job_service",
        "worker.bundle_processor",
        "worker.data_plane",
        "worker.sdk_worker",
    )
)


@contextmanager
def tracebacks_kept_back() -> Iterator[None]:
    """Let Beam log no traceback in the block; one may end with a message that quotes a document."""
    if logging.root.isEnabledFor(logging.DEBUG):
        yield
        return

    def plain(record: logging.LogRecord) -> bool:
        # A worker process writes its own log; and that several need another mode is said where they have it.
        said = record.msg.startswith(("Worker: %s", "If direct_num_workers")) if isinstance(record.msg, str) else False
        return not said and record.exc_info is None and "Traceback" not in record.getMessage()

    with _filtered(_LOGGERS, plain):
        yield


@contextmanager
def warnings_of_imports_kept_back() -> Iterator[None]:
    """Let parts of Beam that the block imports not warn, by the root logger, of other parts that are not installed."""
    root = logging.root
    handler = logging.NullHandler()
    root.addHandler(handler)  # else logging.warning gives the root a handler, which then prints all else too
    try:
        with _filtered((None,), lambda record: "apache_beam" not in record.pathname):
            yield
    finally:
        root.removeHandler(handler)


@contextmanager
def _filtered(names: tuple[str | None, ...], wanted: logging._FilterType) -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in names]
    for logger in loggers:
        logger.addFilter(wanted)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(wanted)
