"""A report as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .machine import sentence
from .report import Report, Row

__all__ = ["figures_of", "plot"]

# What is worth a picture, the first that a table has; of scaling both.
_BARS = ("tokens/s", "TFLOP/s")
_LINES = ("tokens/s", "peak MiB")
_OURS, _OTHERS = "#c44e52", "#4c72b0"


def plot(report: Report, path: Path) -> None:
    """Draw a report: medians, with bars from least to most; the ending of the path tells the format.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        (group, rows, figure)
        for group in dict.fromkeys(row.group for row in report.rows)
        for rows in [[row for row in report.rows if row.group == group and row.samples]]
        for figure in figures_of(report, rows)
    ]
    columns = 2 if report.benchmark == "scaling" else 1
    heights = [1.1 + 0.26 * len(rows) for _, rows, _ in panels][::columns]
    picture, axes = pyplot.subplots(
        len(heights),
        columns,
        figsize=(7 * columns, max(3.0, sum(heights) + 0.6)),
        squeeze=False,
        height_ratios=heights,
    )
    for axis, (group, rows, figure) in zip(axes.flat, panels, strict=False):
        numbers = [_number(row.name) for row in rows]
        if columns == 2 and len(rows) > 1 and None not in numbers:
            _line(axis, rows, figure, numbers)
        else:
            _bars(axis, rows, figure)
        axis.set_title(group if columns == 1 else f"{figure} by {group}", fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    picture.suptitle(f"{report.benchmark}\n{sentence(report.machine)}", fontsize=8)
    picture.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.savefig(path, dpi=150)
    pyplot.close(picture)


def figures_of(report: Report, rows: Sequence[Row]) -> list[str]:
    """The figures of a table that are drawn."""
    found = {figure for row in rows for figure in row.samples}
    if report.benchmark == "scaling":
        return [figure for figure in _LINES if figure in found]
    return [figure for figure in _BARS if figure in found][:1]


def _bars(axis: Any, rows: Sequence[Row], figure: str) -> None:
    middles = [median(row.samples[figure]) for row in rows]
    colors = [_OURS if row.name.startswith("distilbeam") else _OTHERS for row in rows]
    axis.barh([row.name for row in rows], middles, xerr=_errors(rows, figure), color=colors, ecolor="#999999")
    for position, row in enumerate(rows):
        fraction = row.value("fraction")
        if fraction is not None:
            axis.text(max(row.samples[figure]), position, f" {fraction:.0%} of the ceiling", va="center", fontsize=7)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.35 * max(max(row.samples[figure]) for row in rows))
    axis.set_xlabel(figure, fontsize=8)


def _line(axis: Any, rows: Sequence[Row], figure: str, numbers: Sequence[float | None]) -> None:
    middles = [median(row.samples[figure]) for row in rows]
    axis.errorbar(numbers, middles, yerr=_errors(rows, figure), marker="o", color=_OTHERS, ecolor="#999999")
    axis.set_xscale("log")
    axis.set_ylim(bottom=0)


def _errors(rows: Sequence[Row], figure: str) -> list[list[float]]:
    """How far the least and the most lie from the median."""
    below = [median(row.samples[figure]) - min(row.samples[figure]) for row in rows]
    above = [max(row.samples[figure]) - median(row.samples[figure]) for row in rows]
    return [below, above]


def _number(name: str) -> float | None:
    try:
        return float(name.replace(",", ""))
    except ValueError:
        return None
