"""The number of torch's threads is a model's only while it works."""

import threading
from collections.abc import Iterator

import pytest
import torch

from distilbeam.transforms.distilbert.torch_threads import host_threads, torch_threads


@pytest.fixture(autouse=True)
def host() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield 5
    torch.set_num_threads(before)


def test_it_is_given_back(host: int) -> None:
    with torch_threads(2):
        assert (torch.get_num_threads(), host_threads()) == (2, host)
        with torch_threads(3):
            assert torch.get_num_threads() == 3
        assert (torch.get_num_threads(), host_threads()) == (2, host)  # the outer block goes on
    assert torch.get_num_threads() == host_threads() == host
    with pytest.raises(KeyError), torch_threads(1):
        raise KeyError
    assert torch.get_num_threads() == host


def test_the_host_may_change_its_mind() -> None:
    with torch_threads(1):
        pass
    torch.set_num_threads(4)
    assert host_threads() == 4


def in_new_thread(found: dict[str, int], name: str) -> threading.Thread:
    return threading.Thread(target=lambda: found.update({name: torch.get_num_threads()}))


def test_two_at_once_have_each_their_own_and_leave_the_hosts(host: int) -> None:
    entered, left = threading.Event(), threading.Event()
    found: dict[str, int] = {}

    def other() -> None:
        with torch_threads(3):
            entered.set()
            assert left.wait(60)
            found["other, alone"] = torch.get_num_threads()
        found["other, after"] = torch.get_num_threads()

    thread = threading.Thread(target=other)
    with torch_threads(2):
        thread.start()
        assert entered.wait(60)
        found["one"] = torch.get_num_threads()
    found["one, after"] = torch.get_num_threads()
    left.set()
    thread.join()
    new = in_new_thread(found, "new")
    new.start()
    new.join()
    assert found == {"one": 2, "one, after": host, "other, alone": 3, "other, after": host, "new": host}
