"""A worker process of a job that runs on this machine in several; it logs to where the job does, and as much.

Started as ``python -m distilbeam.pipelines.worker LEVEL SPELLING``, with what Beam's own ``sdk_worker_main`` takes from
the environment. That one logs everything from information on, and the tracebacks of all errors.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys

from .options import spellings
from .quiet import warnings_of_imports_kept_back
from .spelling import OptionFormatter

__all__ = ["command_line", "main"]


def command_line() -> str:
    """The command that starts a worker which logs as this process does."""
    ours = logging.getLogger("distilbeam").getEffectiveLevel()
    all_of_it = logging.root.isEnabledFor(logging.INFO)
    options = any(isinstance(handler.formatter, OptionFormatter) for handler in logging.root.handlers)
    level = "all" if all_of_it else logging.getLevelName(ours)
    words = [sys.executable, "-m", __name__, level, "options" if options else "python"]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def main(level: str, spelling: str) -> None:
    """Work until the job ends."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        OptionFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S", spellings())
        if spelling == "options"
        else logging.Formatter("%(levelname)s:%(name)s:%(message)s")
    )
    if level != "all":
        least = logging.getLevelName(level)
        handler.addFilter(lambda record: record.name.startswith("distilbeam") and record.levelno >= least)
        # Beam prints the traceback of every error besides; the process that started this one is told it all the same.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    with warnings_of_imports_kept_back():
        from apache_beam.runners.worker import sdk_worker_main
    logging.basicConfig(handlers=[handler], force=True)
    sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
    main(*sys.argv[1:])
