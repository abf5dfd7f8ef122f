"""Tables, JSON and plots of what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.machine import describe
from benchmarks.measure import interleave
from benchmarks.report import Report, Row, read_json, table, write_json


@pytest.fixture
def report() -> Report:
    rows = [
        Row("first", "a", {"tokens/s": [3.0, 1000.0, 20.0], "s": [0.25]}, {"call": "linear"}),
        Row("first", "missing", note="not installed: x"),
        Row("second", "10", {"tokens/s": [1e-7, 2e-7]}, {"rows": 1200}),
    ]
    return Report("roofline", describe(), {"rows": 3, "token budget": None, "corpus": "mix"}, rows, ["a note"])


def test_json_gives_the_report_back(report: Report, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(report, path)
    assert read_json(path) == report
    assert [row["medians"] for row in json.loads(path.read_text())["rows"]] == [
        {"tokens/s": 20.0, "s": 0.25},
        {},
        {"tokens/s": 1.5e-7},
    ]


def test_the_table_has_every_row_and_its_median(report: Report) -> None:
    head, first, second = table(report.rows[:2]).splitlines()
    assert head.split() == ["tokens/s", "s", "call", "note"]
    assert first.split() == ["a", "20.0", "(3", "to", "1,000)", "0.25", "linear"]
    assert second.split() == ["missing", "not", "installed:", "x"]
    assert head.index("s", head.index("/s") + 2) == first.index("0.25") + 3


def test_the_text_says_where_and_how(report: Report) -> None:
    text = report.text()
    for part in (report.machine["cpu"], report.machine["torch"], "corpus mix", "first", "second", "1,200", "a note"):
        assert part in text
    assert "None" not in text.splitlines()[0]


def test_the_machine_is_described() -> None:
    machine = describe()
    assert machine["cores"] >= 1
    assert machine["memory_gib"] > 0
    assert {"cpu", "isa", "torch", "gpu", "packages", "commit"} <= set(machine)
    assert "distilbeam" in machine["packages"]


def test_work_is_done_in_turns() -> None:
    done: list[str] = []
    ticks = iter(range(100))

    def timer(work: object) -> float:
        assert callable(work)
        work()
        return next(ticks)

    seconds = interleave({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, 3, timer=timer)
    assert done == ["a", "b"] * 3
    assert seconds == {"a": [0, 2, 4], "b": [1, 3, 5]}


@pytest.mark.parametrize("benchmark", ["roofline", "scaling"])
def test_a_report_can_be_drawn(report: Report, benchmark: str, tmp_path: Path) -> None:
    from benchmarks.plot import plot

    plot(Report(benchmark, report.machine, report.settings, report.rows), tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
