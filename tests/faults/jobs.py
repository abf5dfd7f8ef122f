"""Jobs of the fault suite: their inputs, their commands and the processes that run them."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.oracle import Truth

__all__ = ["MODEL", "Corpus", "Done", "Runner", "corpus", "embed", "kill", "truth_of"]

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "distilbert-tiny-sst2"
_BAD = (b'{"id": "cut off', b'{"id": "x"}', b'{"id": "x", "text": 5}', b"\xff\xfe", b"[]", b"no json")
_WORDS = ("a", "fine", "film", "dull", "parts", "one", "great", "scene", "that", "nobody", "will", "forget")


@dataclass(frozen=True)
class Corpus:
    """Files of JSON lines, some of them bad, and of Parquet.

    Attributes:
        files: bytes of each file by its name.
        ids: of all good rows, in no order.
        rejects: file name and position of each bad row.
    """

    files: Mapping[str, bytes]
    ids: frozenset[str]
    rejects: frozenset[tuple[str, int]]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        return folder


def corpus(seed: int = 0, *, jsonl: int = 2, parquet: int = 1, rows: int = 150, bad: int = 4, stem: str = "") -> Corpus:
    """Invented files of ``rows`` rows each; the same for the same arguments."""
    chance = random.Random(f"{seed}{stem}")
    files, ids, rejects = {}, set(), set()
    for number in range(jsonl):
        name = f"{stem}lines-{number}.jsonl"
        wrong = set(chance.sample(range(rows), bad))
        lines = []
        for row in range(rows):
            key = f"{stem}{number}-{row}"
            if row in wrong:
                lines.append(_BAD[row % len(_BAD)])
                rejects.add((name, row + 1))
            else:
                ids.add(key)
                lines.append(json.dumps({"id": key, "text": _text(chance)}).encode())
        files[name] = b"\n".join(lines) + b"\n"
    for number in range(parquet):
        keys = [f"{stem}p{number}-{row}" for row in range(rows)]
        ids.update(keys)
        sink = pa.BufferOutputStream()
        table = pa.table({"id": keys, "text": [_text(chance) for _ in keys]})
        pq.write_table(table, sink, row_group_size=max(1, rows // 4))
        files[f"{stem}table-{number}.parquet"] = sink.getvalue().to_pybytes()
    return Corpus(files, frozenset(ids), frozenset(rejects))


def _text(chance: random.Random) -> str:
    return " ".join(chance.choices(_WORDS, k=chance.randint(1, 12)))


def embed(source: str | Path, output: str | Path, *more: str, model: str | Path = MODEL) -> list[str]:
    """Arguments of a job that embeds in fp32, in many splits; of a folder the files of both formats."""
    inputs = [str(source)]
    if not Path(source).suffix:
        patterns = ["*.jsonl", "*.parquet"]
        if "://" not in str(source):
            patterns = [pattern for pattern in patterns if next(Path(source).glob(pattern), None)]
        inputs = [f"{source}/{pattern}" for pattern in patterns] or [str(source)]
    return [
        *("embed", "--model", str(model), "--input", *inputs, "--output", str(output), "--id", "id"),
        *("--dtype", "float32", "--split-bytes", "2000", "--progress", "none", "--quiet"),
        *("--max-rejects", "50%", *more),
    ]


@dataclass(frozen=True)
class Done:
    """How a process ended: exit code, negative for a signal, what it said, seconds and, if known, peak memory."""

    code: int
    said: str
    seconds: float
    peak_mb: float | None


class Runner:
    """Runs commands of ``distilbeam``, each in a process of its own, forked from one that has everything imported."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log.txt"
        environment = dict(os.environ, OMP_NUM_THREADS="1")
        self._zygote = subprocess.Popen(
            [sys.executable, "-W", "ignore", str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        ready = self._answer()
        assert ready["threads"] == 1, "a process with threads must not fork"

    def close(self) -> None:
        assert self._zygote.stdin
        self._zygote.stdin.close()
        self._zygote.wait(30)

    def __call__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        disturb: Callable[[int], None] = lambda pid: None,
        warm: bool = True,
        code: str = "",
        folder: Path | None = None,
        **limits: int,
    ) -> Done:
        """Runs one command to its end.

        Args:
            argv: the arguments of ``distilbeam``.
            environment: added to that of this process.
            disturb: called with the id of the process as soon as it runs; may end it.
            warm: whether to fork; else ``python -m distilbeam`` is begun anew.
            code: Python that the forked process runs first; with no arguments it is all that is run.
            folder: where the forked process runs.
            limits: ``file_size`` in bytes (RLIMIT_FSIZE), ``user``: id of the user to become.
        """
        self._log.write_bytes(b"")
        self._log.chmod(0o666)
        job = {"argv": list(map(str, argv)), "environment": dict(environment or {}), "log": str(self._log), **limits}
        job |= {"code": code, "folder": str(folder or "")}
        start = time.monotonic()
        if not warm:
            return self._run_cold(job, disturb, start)
        assert self._zygote.stdin
        self._zygote.stdin.write(json.dumps(job) + "\n")
        self._zygote.stdin.flush()
        disturb(self._answer()["pid"])
        answer = self._answer()
        said = self._log.read_text(errors="replace")
        return Done(answer["code"], said, time.monotonic() - start, answer["peak_mb"])

    def _run_cold(self, job: Mapping[str, Any], disturb: Callable[[int], None], start: float) -> Done:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "distilbeam", *job["argv"]],
                stdout=log,
                stderr=log,
                env={**os.environ, **job["environment"], "OMP_NUM_THREADS": "1"},
            )
        disturb(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said = self._log.read_text(errors="replace")
        # Before it runs a program of its own, a process counts the memory of the one that has started it.
        known = usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return Done(process.returncode, said, time.monotonic() - start, usage.ru_maxrss / 1024 if known else None)

    def _answer(self) -> dict[str, Any]:
        assert self._zygote.stdout
        line = self._zygote.stdout.readline()
        assert line, "the process that forks the jobs has died"
        found: dict[str, Any] = json.loads(line)
        return found


def kill(pid: int) -> None:
    """SIGKILL, if the process is still there; its parent has not waited for it, so the id is still its own."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def truth_of(corpus: Corpus, vectors: Mapping[str, Any]) -> Truth:
    """What must come out of a corpus, with the vectors of a clean run, which must hold just its good rows."""
    assert set(vectors) == corpus.ids
    return Truth(dict(vectors), corpus.rejects)
