"""One row per fault: how often it was injected, whether all was as promised, and what it cost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

__all__ = ["KEY", "NOTHING", "FaultReport", "render", "rows_of", "summarize"]

KEY = "fault"
_COLUMNS = {
    "fault": "fault",
    "injected": "injected",
    "holds": "as promised",
    "splits_redone": "splits redone",
    "extra_passes": "extra passes",
    "seconds": "seconds",
    "peak_mb": "peak MB",
    "note": "note",
}
NOTHING = dict.fromkeys(("injected", "splits_redone", "extra_passes", "seconds", "peak_mb"), None) | {"note": ""}
"""What is known of a fault whose test has failed before it could tell."""

_SUMS = ("injected", "splits_redone", "extra_passes", "seconds")


def summarize(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints all rows of a session; ``FAULTS_JSON`` names a file to write them to as well."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", "") == "call"]  # the others repeat its properties
    found = [(value, report.passed) for report in calls for key, value in report.user_properties if key == KEY]
    # A fault test that fails before it could add its row is seen all the same.
    lost = [report.nodeid for report in calls if report.failed and report.nodeid.startswith("tests/faults/")]
    found += [({"fault": test, **NOTHING}, False) for test in lost]
    rows = rows_of(found)
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write(render(rows) + "\n")
    if os.environ.get("FAULTS_JSON"):
        Path(os.environ["FAULTS_JSON"]).write_text(json.dumps(rows, indent=2) + "\n")


class FaultReport:
    """Adds rows to the table of the session; they travel with the test's report, also from a process of xdist."""

    def __init__(self, properties: list[tuple[str, object]]) -> None:
        self._properties = properties

    def add(
        self,
        fault: str,
        *,
        injected: int,
        splits_redone: int | None = None,
        extra_passes: int | None = None,
        seconds: float | None = None,
        peak_mb: float | None = None,
        note: str = "",
    ) -> None:
        """Adds a row; rows of the same fault become one.

        Args:
            fault: what was injected, in a few words.
            injected: how often it really happened; a fault that never happened proves nothing, so 0 fails.
            splits_redone: splits that were computed again.
            extra_passes: model passes beyond those of a clean run.
            seconds: what the job took, or took longer, as ``note`` says.
            peak_mb: peak resident memory of the job's process.
            note: what else is to be known.
        """
        assert injected > 0, f"the fault {fault!r} was never injected"
        row = {
            "fault": fault,
            "injected": int(injected),
            "splits_redone": splits_redone,
            "extra_passes": extra_passes,
            "seconds": None if seconds is None else round(float(seconds), 3),
            "peak_mb": None if peak_mb is None else round(float(peak_mb), 1),
            "note": note,
        }
        self._properties.append((KEY, row))


def rows_of(found: Iterable[tuple[Any, bool]]) -> list[dict[str, Any]]:
    """The rows in the order they came, those of the same fault as one: sums, and the highest peak.

    Args:
        found: rows, each with whether the test that added it has passed.
    """
    rows: dict[str, dict[str, Any]] = {}
    for row, passed in found:
        known = rows.setdefault(row["fault"], dict(row, runs=0, holds=True))
        known["holds"] = known["holds"] and passed
        if known["runs"]:
            for name in _SUMS:
                values = [each[name] for each in (known, row) if each[name] is not None]
                known[name] = round(sum(values), 3) if values else None
            peaks = [each["peak_mb"] for each in (known, row) if each["peak_mb"] is not None]
            known["peak_mb"] = max(peaks, default=None)
        known["runs"] += 1
    return list(rows.values())


def render(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as text, one line each."""
    cells = [list(_COLUMNS.values())] + [[_shown(row.get(name)) for name in _COLUMNS] for row in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
