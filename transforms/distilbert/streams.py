"""CUDA streams: micro-batches side by side on a GPU, so that it never waits for a copy or for Python."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Streams", "fetched"]


class Streams:
    """As many streams of one GPU as micro-batches run at once; of a CPU none.

    They are used again and again, since torch keeps memory that was free once for the stream it was free in.
    """

    def __init__(self, device: torch.device, count: int) -> None:
        self._device = device
        self._free: queue.SimpleQueue[torch.cuda.Stream] = queue.SimpleQueue()
        for _ in range(count if device.type == "cuda" else 0):
            self._free.put(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    @contextmanager
    def one(self) -> Iterator[None]:
        """What the calling thread does on the GPU is done in a stream that no other has; waits until one is free."""
        if self._device.type != "cuda":
            yield
            return
        stream = self._free.get()
        try:
            # In which the weights were put there.
            stream.wait_stream(torch.cuda.default_stream(self._device))
            with torch.cuda.stream(stream):
                yield
        finally:
            self._free.put(stream)


def fetched(tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[np.float32]]:
    """Tensors of float32 as arrays in the memory of the CPU, once what computes them is done: one wait for all."""
    if not any(tensor.is_cuda for tensor in tensors):
        return [tensor.numpy() for tensor in tensors]
    pinned = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for here, there in zip(pinned, tensors, strict=True):
        here.copy_(there, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [tensor.numpy() for tensor in pinned]
