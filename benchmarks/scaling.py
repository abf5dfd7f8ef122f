"""How peak memory and rate change with rows, repeated texts, features and document length.

Each measurement is a job of its own in a fresh process, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import corpus
from .checkpoint import SHAPES, save_random
from .machine import describe
from .report import Report, Row

__all__ = ["FEATURES", "SHARES", "Job", "jobs", "measure", "repeated", "scaling"]

SHARES = (0.0, 0.5, 0.9)
"""Shares of rows whose text stands in an earlier row."""
FEATURES = (("embedding",), ("embedding", "label", "score"), ("embedding", "label", "score", "scores", "input_ids"))

_AXES = {
    "rows": "rows",
    "repeats": "share of rows with a text that came before",
    "features": "features of one pass",
    "lengths": "tokens of a document",
}
# A process's highest memory since it began, as Linux knows it; elsewhere resource tells it, in bytes on a Mac.
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Job:
    """One job: what varies in it, and the input it reads.

    Attributes:
        axis: ``rows``, ``repeats``, ``features`` or ``lengths``.
        name: where on the axis it lies.
        rows: rows of the input.
        share: of the rows, how many have a text that came before.
        length: tokens of each text, without special tokens; None for lengths as in the mix.
        features: what is computed.
    """

    axis: str
    name: str
    rows: int
    share: float = 0.0
    length: int | None = None
    features: tuple[str, ...] = ("embedding",)

    def texts(self, seed: int) -> list[str]:
        """The input."""
        generator = np.random.default_rng(seed)
        if self.length is not None:
            return corpus.generate(np.full(self.rows, self.length), generator)
        if self.share:
            return repeated(self.rows, self.share, generator)
        return corpus.generate(corpus.draw_lengths(self.rows, generator), generator)


def jobs(options: Namespace) -> Iterator[Job]:
    """All jobs that options ask for: ``axes``, ``rows`` and ``lengths`` (lists), ``at`` (rows of the other axes)."""
    at: int = options.at
    every = {
        "rows": [Job("rows", f"{rows:,}", rows) for rows in options.rows],
        "repeats": [Job("repeats", f"{share:.0%}", at, share=share) for share in SHARES],
        "features": [Job("features", " ".join(features), at, features=features) for features in FEATURES],
        "lengths": [Job("lengths", str(length), at, length=length) for length in options.lengths],
    }
    for axis in options.axes:
        yield from every[axis]


def repeated(rows: int, share: float, generator: np.random.Generator) -> list[str]:
    """Texts with lengths as in the mix, of which so many come from others among them, in random order."""
    distinct = max(1, rows - round(rows * share))
    texts = corpus.generate(corpus.draw_lengths(distinct, generator), generator)
    # Drawn evenly, so that the lengths stay as they are.
    again = np.arange(rows - distinct) % distinct
    order = generator.permutation(np.concatenate([np.arange(distinct), again]))
    return [texts[position] for position in order.tolist()]


def scaling(options: Namespace, folder: Path, tell: Callable[[str], object] = print) -> Report:
    """Run every job ``repeats`` times, in turns, each in a process of its own.

    Args:
        options: those of ``jobs``, and ``model``, ``shape``, ``seed``, ``repeats``, ``device``, ``dtype``,
            ``threads``, ``token_budget``.
        folder: an empty folder for what is written.
        tell: is told what runs.
    """
    machine = describe()
    model = Path(options.model) if options.model else save_random(folder / options.shape, SHAPES[options.shape])
    wanted = list(jobs(options))
    compute = {name: getattr(options, name) for name in ("device", "dtype", "threads", "token_budget")}
    inputs = {}
    for number, job in enumerate(wanted):
        tell(f"writing the input for {job.axis} {job.name}")
        inputs[job] = corpus.save(job.texts(options.seed), folder / f"input-{number}" / "texts.parquet")
    samples: dict[Job, list[dict[str, float]]] = {job: [] for job in wanted}
    for turn in range(options.repeats):
        for job in wanted:
            tell(f"round {turn + 1} of {options.repeats}: {job.axis} {job.name}")
            samples[job].append(_in_a_process(model, inputs[job], job, compute, folder))
    rows = [_row(job, found) for job, found in samples.items()]
    settings = {
        "model": model.name,
        "rows where they do not vary": options.at,
        "seed": options.seed,
        "repeats": options.repeats,
        "device": options.device,
        "dtype": options.dtype,
        "threads": options.threads,
        "token budget": options.token_budget,
    }
    notes = [
        "Medians (least to most). Each run is a whole job, stored text -> stored features, in a fresh process.",
        "s: of the job, with the loading of the model, without the start of Python. peak MiB: of the process, without",
        "that which decodes Parquet. start MiB: before the job, with all modules loaded.",
    ]
    return Report("scaling", machine, settings, rows, notes)


def measure(model: str, stored: str, job: dict[str, Any], compute: dict[str, Any]) -> dict[str, float]:
    """Run one job in this process, which should be fresh.

    Returns:
        ``seconds``, ``rows``, ``tokens`` (of the output) and ``start_mib``, ``peak_mib`` (memory).
    """
    from distilbeam.pipelines import featurize

    start_mib = _peak_mib()
    with tempfile.TemporaryDirectory(dir=Path(stored).parent) as output:
        start = time.perf_counter()
        summary = featurize(
            model, features=job["features"], input=stored, output=f"{output}/features", keep=["id"], **compute
        )
        seconds = time.perf_counter() - start
    if summary is None or summary.rows != job["rows"]:
        raise RuntimeError(f"{job['rows']} rows were stored, and the output is {summary}")
    return {
        "seconds": seconds,
        "rows": summary.rows,
        "tokens": summary.tokens,
        "start_mib": start_mib,
        "peak_mib": _peak_mib(),
    }


def _in_a_process(model: Path, stored: Path, job: Job, compute: dict[str, Any], folder: Path) -> dict[str, float]:
    result = folder / "result.json"
    request = json.dumps({"model": str(model), "stored": str(stored), "job": asdict(job), "compute": compute})
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.scaling", str(result)]
    # Its output is kept back, since Beam says more than anyone wants to read.
    done = subprocess.run(
        command, input=request, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the job for {job.axis} {job.name} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(result.read_text(encoding="utf-8"))
    return found


def _row(job: Job, found: list[dict[str, float]]) -> Row:
    samples = {
        "s": [one["seconds"] for one in found],
        "rows/s": [one["rows"] / one["seconds"] for one in found],
        "tokens/s": [one["tokens"] / one["seconds"] for one in found],
        "peak MiB": [one["peak_mib"] for one in found],
        "start MiB": [one["start_mib"] for one in found],
    }
    return Row(_AXES[job.axis], job.name, samples, {"rows": job.rows, "tokens": int(found[0]["tokens"])})


def _peak_mib() -> float:
    if _STATUS.exists():
        # Not what resource says, which a process that was forked takes over from the one it came from.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(measure(**json.load(sys.stdin))), encoding="utf-8")
