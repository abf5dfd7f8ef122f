"""The table of the fault suite: one row for each fault that a test has injected."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import Runner
from tests.faults.stores import Server, s3_server
from tests.faults.table import KEY, NOTHING, FaultReport, render, rows_of


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> FaultReport:
    """``fault_report.add("503 from the store", injected=17, seconds=1.2)`` adds a row to the table."""
    return FaultReport(request.node.user_properties)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints all rows; ``FAULTS_JSON`` names a file to write them to as well."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", "") == "call"]  # the others repeat its properties
    found = [(value, report.passed) for report in calls for key, value in report.user_properties if key == KEY]
    # A test that fails before it could add its row is seen all the same.
    found += [({"fault": report.nodeid, **NOTHING}, False) for report in calls if report.failed]
    rows = rows_of(found)
    if not rows:
        return
    terminalreporter.section("faults")
    terminalreporter.write(render(rows) + "\n")
    if os.environ.get("FAULTS_JSON"):
        Path(os.environ["FAULTS_JSON"]).write_text(json.dumps(rows, indent=2) + "\n")


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs ``distilbeam`` in processes of its own."""
    found = Runner(tmp_path_factory.mktemp("runner"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """moto's S3 server."""
    with s3_server() as found:
        yield found
