"""What a benchmark has found: as a table, as JSON, and as what a plot is drawn from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from .machine import sentence

__all__ = ["Report", "Row", "read_json", "table", "write_json"]


@dataclass(frozen=True, slots=True)
class Row:
    """One thing measured, or why it was not.

    Attributes:
        group: rows of one table, in the order they come.
        name: what was measured.
        samples: what each repeat gave, by name of the figure; the table shows their medians.
        facts: what does not vary.
        note: shown beside it, such as why there is no figure.
    """

    group: str
    name: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    facts: dict[str, float | str] = field(default_factory=dict)
    note: str = ""

    def value(self, figure: str) -> float | None:
        """The median of a figure; None if there is none."""
        numbers = self.samples.get(figure)
        return median(numbers) if numbers else None


@dataclass(frozen=True, slots=True)
class Report:
    """All that one command has found."""

    benchmark: str
    machine: dict[str, Any]
    settings: dict[str, Any]
    rows: list[Row]
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """What is printed."""
        settings = ", ".join(f"{name} {_cell(value)}" for name, value in self.settings.items() if value is not None)
        parts = [f"{self.benchmark}: {settings}", sentence(self.machine)]
        for group in dict.fromkeys(row.group for row in self.rows):
            parts += ["", group, table([row for row in self.rows if row.group == group])]
        return "\n".join([*parts, "", *self.notes]).rstrip()


def table(rows: Sequence[Row]) -> str:
    """Rows as text: medians, with least and most behind them where there were several repeats."""
    figures = list(dict.fromkeys(figure for row in rows for figure in row.samples))
    facts = list(dict.fromkeys(fact for row in rows for fact in row.facts))
    noted = any(row.note for row in rows)
    lines = [["", *figures, *facts, *(["note"] if noted else [])]]
    for row in rows:
        numbers = [_spread(row.samples.get(figure, [])) for figure in figures]
        others = [_cell(row.facts.get(fact, "")) for fact in facts]
        lines.append([row.name, *numbers, *others, *([row.note] if noted else [])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(widths) - 1
    return "\n".join(
        "  ".join(
            cell.ljust(width) if position == 0 or (noted and position == last) else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def write_json(report: Report, path: Path) -> None:
    """Write a report with every sample, and the medians beside them."""
    rows = [asdict(row) | {"medians": {name: row.value(name) for name in row.samples}} for row in report.rows]
    found = asdict(report) | {"rows": rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Report:
    """What ``write_json`` has written."""
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**{name: value for name, value in row.items() if name != "medians"}) for row in found.pop("rows")]
    return Report(rows=rows, **found)


def _spread(numbers: Sequence[float]) -> str:
    if not numbers:
        return ""
    if len(numbers) == 1:
        return _cell(numbers[0])
    return f"{_cell(median(numbers))} ({_cell(min(numbers))} to {_cell(max(numbers))})"


def _cell(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(map(_cell, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
