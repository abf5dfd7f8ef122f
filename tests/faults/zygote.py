"""Runs commands in processes forked from one that has imported everything, which saves their start of seconds.

Reads one JSON object a line, ``{"argv": [...], "environment": {...}, "log": path, "code": ..., "folder": ...}``. For
each it writes first ``{"pid": ...}`` and, once the process has ended, ``{"code": ..., "peak_mb": ...}``. What is forked
has no thread but its own, so it behaves as a process begun with ``python -m distilbeam`` does.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import traceback
from typing import Any

import apache_beam.runners.portability.fn_api_runner.fn_runner  # noqa: F401
import s3fs  # noqa: F401

import distilbeam.pipelines.job
import distilbeam.transforms.distilbert.engine
import distilbeam.transforms.input.formats.jsonl
import distilbeam.transforms.input.formats.parquet  # noqa: F401
from distilbeam.pipelines.cli import main


def _become(job: dict[str, Any]) -> None:
    """What the child does; never returns."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.environ.update(job["environment"])
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        limit = job.get("file_size")
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        if job.get("user"):
            os.setgroups([])
            os.setgid(job["user"])
            os.setuid(job["user"])
        if job.get("folder"):
            os.chdir(job["folder"])
        code = _run(job["code"]) if job.get("code") else 0
        if job["argv"]:
            code = main(job["argv"])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _run(code: str) -> int:
    """What ``python -c`` does with the code, and its exit code."""
    try:
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    answers.write(json.dumps({"threads": threading.active_count()}) + "\n")
    for line in sys.stdin:
        job = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become(job)
        answers.write(json.dumps({"pid": pid}) + "\n")
        _, status, usage = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps({"code": code, "peak_mb": usage.ru_maxrss / 1024}) + "\n")


if __name__ == "__main__":
    _serve()
