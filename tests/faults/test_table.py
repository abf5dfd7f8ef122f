from __future__ import annotations

import pytest

from tests.faults.table import FaultReport, render, rows_of


def test_rows_of_the_same_fault_become_one() -> None:
    properties: list[tuple[str, object]] = []
    report = FaultReport(properties)
    report.add("503", injected=3, seconds=1.5, peak_mb=10)
    report.add("reset", injected=1, splits_redone=2)
    report.add("503", injected=4, seconds=2, peak_mb=30)
    first, second = rows_of([(row, row["seconds"] != 2) for _, row in properties])
    assert (first["injected"], first["holds"], first["seconds"], first["peak_mb"], first["runs"]) == (
        7,
        False,
        3.5,
        30,
        2,
    )
    assert (second["fault"], second["splits_redone"], second["seconds"]) == ("reset", 2, None)
    lines = render([first, second]).splitlines()
    assert lines[2].split()[:3] == ["503", "7", "NO"]
    assert lines[3].split()[:4] == ["reset", "1", "yes", "2"]


def test_a_fault_that_never_happened_is_no_evidence() -> None:
    with pytest.raises(AssertionError, match="never injected"):
        FaultReport([]).add("503", injected=0)
