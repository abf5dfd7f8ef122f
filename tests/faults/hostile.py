"""Reads files as a job would, in processes with little memory that say how long it took and how much they used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SECONDS = 10.0
MEGABYTES = 1024.0


@dataclass(frozen=True)
class Outcome:
    """What became of a file.

    Attributes:
        rows: rows read.
        rejects: how many rejects of each error class.
        failure: the InputError, or None.
        reasons: reasons of the first rejects.
        seconds: of computing, to plan and read, as others may be at work on this machine; those of decoders are known
            only where each file has its own.
        megabytes: peak resident memory of the reader.
        decoder: peak resident memory of its decoders so far.
    """

    rows: int
    rejects: dict[str, int]
    failure: str | None
    reasons: list[str]
    seconds: float
    megabytes: float
    decoder: float

    def check(self) -> Outcome:
        """Itself, if it kept to the bounds that hold for every file."""
        assert self.seconds < SECONDS, self
        assert self.megabytes + self.decoder < MEGABYTES, self
        return self

    def __str__(self) -> str:
        if self.failure is not None:
            return "InputError"
        rejects = ", ".join(f"{count} {error}" for error, count in sorted(self.rejects.items()))
        return f"{self.rows} rows" + (f", rejects: {rejects}" if rejects else "")


_PROBE = """
import json, resource, sys
from distilbeam.transforms.input import sandbox
from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.planning import plan_splits
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split

def status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) / 1024

def cpu():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

limit = int(status("VmSize") + 1024) << 20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
for line in sys.stdin:
    case = json.loads(line)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    start = cpu()
    rows, rejects, reasons, failure = 0, {}, [], None
    try:
        settings = ReadSettings(path=case["path"], **case["settings"])
        for split in plan_splits(settings):
            seen = {}
            for batch in read_split(split, settings):
                note = Provenance.of(batch)
                rows += batch.num_rows
                reasons += [reject.reason for reject in note.rejects][: 3 - len(reasons)]
                for reject in note.rejects:
                    rejects[reject.error] = rejects.get(reject.error, 0) + 1
                if case["most"] and rows + sum(rejects.values()) >= case["most"]:
                    break
            if case["most"] and rows >= case["most"]:
                break
    except InputError as error:
        failure = str(error)
    if case["fresh"]:
        sandbox.close()
    seconds = cpu() - start
    print(json.dumps({
        "rows": rows, "rejects": rejects, "failure": failure, "reasons": reasons, "seconds": seconds,
        "megabytes": status("VmHWM"),
        "decoder": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }), flush=True)
"""


def read_all(paths: list[Path], *, most: int = 0, fresh: bool = False, **settings: Any) -> list[Outcome]:
    """Reads the files one after the other in one process that may take 1 GB of addresses more than at its start.

    Args:
        paths: the files.
        most: rows after which to stop.
        fresh: whether each file gets a decoder of its own, so that its memory can be told.
        settings: of the reader.
    """
    lines = [json.dumps({"path": str(path), "settings": settings, "most": most, "fresh": fresh}) for path in paths]
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        timeout=280,
        # Freed memory is given back at once, so that the peak is of the file that is being read.
        env={**os.environ, "ARROW_DEFAULT_MEMORY_POOL": "system", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{paths[len(found)].name}: {done.returncode} {done.stderr[-2000:]}"
    assert len(found) == len(paths)
    return found


def read_one(path: Path, *, most: int = 0, fresh: bool = False, **settings: Any) -> Outcome:
    """As ``read_all``, for one file."""
    return read_all([path], most=most, fresh=fresh, **settings)[0]
