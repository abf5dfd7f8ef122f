"""Fixtures and rules of the whole suite: real data only where it is named, no network beyond this machine."""

import ipaddress
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.jobs import Runner
from tests.faults.table import summarize

# Set before any test module is imported, since these libraries read them at import.
os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    # Here, since of the conftest files in folders the controller of xdist reads none.
    summarize(terminalreporter)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [name for name in ("DISTILBEAM_DATA", "DISTILBEAM_MODELS") if not os.environ.get(name)]
    if missing:
        skip = pytest.mark.skip(reason=f"marked data; set {' and '.join(missing)} to run it")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)


def _folder(name: str) -> Path:
    if not os.environ.get(name):
        pytest.fail(f"{name} is not set; a test that needs it is to be marked `data`")
    return Path(os.environ[name]).resolve(strict=True)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the corpora; only for tests marked ``data``."""
    return _folder("DISTILBEAM_DATA")


@pytest.fixture(scope="session")
def models() -> Path:
    """Folder of the models; only for tests marked ``data``."""
    return _folder("DISTILBEAM_MODELS")


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Small random DistilBERT folders; see ``tests/checkpoints.py``."""
    from tests.checkpoints import Checkpoints

    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    """Runs ``distilbeam`` in processes of its own."""
    found = Runner(tmp_path_factory.mktemp("runner"))
    yield found
    found.close()


@pytest.fixture(scope="session", autouse=True)
def _only_this_machine() -> Iterator[None]:
    """Sockets reach loopback only, so that no test depends on the network unseen."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise PermissionError(f"a test tried to connect to {address}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", guarded)
    yield
    patch.undo()


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified
