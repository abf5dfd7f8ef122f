"""CUDA streams, mostly with something that stands for them where there is no GPU."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distilbeam.transforms.distilbert.streams import Streams, fetched


class Standing:
    """Stands for a stream, and remembers what it waited for."""

    def __init__(self, device: torch.device) -> None:
        self.waited: list[Any] = []

    def wait_stream(self, other: Any) -> None:
        self.waited.append(other)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What was entered, by thread."""
    seen = SimpleNamespace(entered=[], default=object())

    def enter(stream: Standing) -> Any:
        assert stream.waited[-1] is seen.default
        seen.entered.append(stream)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", Standing)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device: seen.default)
    return seen


def test_a_cpu_has_none(cuda: SimpleNamespace) -> None:
    streams = Streams(torch.device("cpu"), 2)
    with streams.one(), streams.one(), streams.one():
        pass
    assert cuda.entered == []


def test_each_is_given_to_one_at_a_time_and_given_back(cuda: SimpleNamespace) -> None:
    streams = Streams(torch.device("cuda"), 2)
    with streams.one():
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), streams.one():
                raise ZeroDivisionError
    first, *others = cuda.entered
    assert len(others) == 3
    assert first not in others
    assert len(set(map(id, others))) == 1
    waited = threading.Event()

    def third() -> None:
        with streams.one():
            waited.set()

    with streams.one(), streams.one():
        thread = threading.Thread(target=third)
        thread.start()
        assert not waited.wait(0.2)
    assert waited.wait(10)
    thread.join()


def test_arrays_are_what_the_tensors_were() -> None:
    tensors = [torch.arange(6.0).view(2, 3), torch.zeros(0, 3)]
    arrays = fetched(tensors)
    assert [array.tolist() for array in arrays] == [tensor.tolist() for tensor in tensors]
    assert fetched([]) == []


@pytest.mark.gpu
def test_arrays_of_a_gpu_are_complete_when_they_are_there() -> None:
    device = torch.device("cuda")
    streams = Streams(device, 2)
    for number in range(20):
        with streams.one():
            tensor = torch.full((1024, 1024), float(number), device=device)
            for _ in range(10):
                tensor = tensor @ torch.eye(1024, device=device)
            (array,) = fetched([tensor])
        assert (array == number).all()
