"""How near we come to what the machine can do: our paths against matrix products of the same shapes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import ceiling
from .checkpoint import Shape, read_shape
from .corpus import Corpus
from .flops import gemm_shapes
from .machine import describe
from .measure import interleave
from .paths import Paths
from .report import Report, Row

__all__ = ["PATHS", "ceilings", "roofline"]

PATHS = "distilbeam, of the ceiling of the dtype it computes in"
RATE, SPEED, FRACTION = "tokens/s", "TFLOP/s", "fraction"


def ceilings(shape: Shape, device: str) -> tuple[str, dict[str, ceiling.Ceiling], list[Row]]:
    """What matrix products can be had on a device: the title of their table, those found, and rows for the others."""
    title = "matrix products " + ", ".join(f"{rows}->{columns}" for rows, columns in gemm_shapes(shape))
    wanted = ceiling.DTYPES if device == "cpu" else (*ceiling.DTYPES, "float16")
    found = {dtype: ceiling.find(dtype, gemm_shapes(shape), device) for dtype in wanted}
    missing = [Row(title, dtype, note="torch has none here") for dtype, one in found.items() if one is None]
    return title, {dtype: one for dtype, one in found.items() if one is not None}, missing


def roofline(
    model: Path, corpus: Corpus, options: Namespace, folder: Path, tell: Callable[[str], object] = print
) -> Report:
    """Measure the ceilings and our paths in turns, in this process.

    Args:
        options: ``dtype`` (a list), ``device``, ``threads``, ``token_budget``, ``repeats``.
        folder: an empty folder for what is written.
        tell: is told what runs.
    """
    machine = describe()
    compute: dict[str, Any] = {
        "device": options.device,
        "threads": options.threads,
        "token_budget": options.token_budget,
    }
    ours = [Paths(model, corpus, folder / dtype, dtype=dtype, **compute) for dtype in options.dtype]
    # Before the ceilings are sought, since this sets the number of threads.
    used = [paths.dtype for paths in ours]
    device = ours[0].encoder.engine.compute.device
    tell("looking for the fastest matrix products")
    title, found, rows = ceilings(read_shape(model), device)
    works: dict[str, Callable[[], object]] = {}
    for paths, dtype in zip(ours, used, strict=True):
        works |= {f"{name}, {dtype}": work for name, work in paths.works().items()}
    tell("each path once, uncounted")
    for work in works.values():
        work()
    rates: dict[str, list[float]] = {dtype: [] for dtype in found}

    def measure_ceilings() -> None:
        for dtype, one in found.items():
            rates[dtype].append(one.sample() / 1e12)

    seconds = interleave({"ceilings": measure_ceilings} | works, options.repeats, tell)
    for dtype, one in found.items():
        rows.append(Row(title, dtype, {SPEED: rates[dtype]}, {"rows of the left": one.tokens, "call": one.how}))
    for paths, dtype in zip(ours, used, strict=True):
        for name in paths.works():
            times = seconds[f"{name}, {dtype}"]
            row = Row(PATHS, f"{name}, {dtype}", figures(times, paths.tokens, paths.flops, rates.get(dtype)))
            others = {f"of {other}": _share(row, ceiling_row) for ceiling_row in rows if (other := ceiling_row.name)}
            rows.append(replace(row, facts={k: v for k, v in others.items() if v is not None}))
    settings = {
        "model": model.name,
        "corpus": corpus.kind,
        "rows": len(corpus),
        "tokens": ours[0].tokens,
        "seed": corpus.seed,
        "repeats": options.repeats,
        "device": device,
        "threads": ours[0].encoder.engine.compute.threads,
        "token budget": options.token_budget,
    }
    notes = [
        "Medians (least to most). FLOPs are those of real tokens; padding counts as waste. int8 counts operations.",
        "fraction: of the ceiling of the same dtype, measured in the same round. of DTYPE: medians, of any ceiling.",
    ]
    return Report("roofline", machine, settings, rows, notes)


def figures(seconds: list[float], tokens: int, flops: int, ceiling_rates: list[float] | None) -> dict[str, list[float]]:
    """Samples of a row: tokens/s, TFLOP/s and, where there is a ceiling (TFLOP/s by round), the fraction of it."""
    speeds = [flops / time / 1e12 for time in seconds]
    found = {RATE: [tokens / time for time in seconds], SPEED: speeds}
    if ceiling_rates:
        found[FRACTION] = [speed / best for speed, best in zip(speeds, ceiling_rates, strict=True)]
    return found


def _share(row: Row, other: Row) -> float | None:
    speed, best = row.value(SPEED), other.value(SPEED)
    return round(speed / best, 4) if speed and best and other.group != PATHS else None
