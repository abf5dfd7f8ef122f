"""What fault tests need: a row in the table of faults, processes that run jobs, and an S3 server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.stores import Server, s3_server
from tests.faults.table import FaultReport


@pytest.fixture
def fault_report(request: pytest.FixtureRequest) -> FaultReport:
    """``fault_report.add("503 from the store", injected=17, seconds=1.2)`` adds a row to the table."""
    return FaultReport(request.node.user_properties)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """moto's S3 server."""
    with s3_server() as found:
        yield found
