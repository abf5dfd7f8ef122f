"""CUDA streams, mostly with something that stands for them where there is no GPU."""

import threading
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distilbeam.transforms.distilbert.streams import Streams, fetched


class Standing:
    """Stands for a stream."""

    def __init__(self, device: torch.device) -> None:
        self.waited = 0

    def synchronize(self) -> None:
        self.waited += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The streams that were entered, the devices, and the stream that weights are loaded in."""
    seen = SimpleNamespace(entered=[], devices=[], loading=Standing(torch.device("cuda")))

    def enter(stream: Standing) -> Any:
        assert seen.devices, "the device is entered first"
        seen.entered.append(stream)
        return nullcontext()

    def enter_device(device: torch.device) -> Any:
        seen.devices.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "Stream", Standing)
    monkeypatch.setattr(torch.cuda, "stream", enter)
    monkeypatch.setattr(torch.cuda, "device", enter_device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: seen.loading)
    return seen


def test_a_cpu_has_none(cuda: SimpleNamespace) -> None:
    streams = Streams(torch.device("cpu"), 2)
    with streams.borrowed(), streams.borrowed(), streams.borrowed():
        pass
    assert cuda.entered == cuda.devices == []


def test_each_is_given_to_one_at_a_time_and_given_back(cuda: SimpleNamespace) -> None:
    device = torch.device("cuda", 1)
    streams = Streams(device, 2)
    assert cuda.loading.waited == 1
    with streams.borrowed():
        for _ in range(3):
            with pytest.raises(ZeroDivisionError), streams.borrowed():
                raise ZeroDivisionError
    first, *others = cuda.entered
    assert len(others) == 3
    assert first not in others
    assert len(set(map(id, others))) == 1
    assert set(cuda.devices) == {device}
    waited = threading.Event()

    def third() -> None:
        with streams.borrowed():
            waited.set()

    with streams.borrowed(), streams.borrowed():
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


def test_alone_it_is_always_the_same(cuda: SimpleNamespace) -> None:
    streams = Streams(torch.device("cuda"), 2)
    for _ in range(4):
        with streams.borrowed():
            pass
    assert len(set(map(id, cuda.entered))) == 1, "memory that is free in one stream cannot be used in another"


@pytest.mark.gpu
def test_arrays_of_a_gpu_are_complete_when_they_are_there() -> None:
    device = torch.device("cuda")
    streams = Streams(device, 2)
    for number in range(20):
        with streams.borrowed():
            tensor = torch.full((1024, 1024), float(number), device=device)
            for _ in range(10):
                tensor = tensor @ torch.eye(1024, device=device)
            (array,) = fetched([tensor])
        assert (array == number).all()
