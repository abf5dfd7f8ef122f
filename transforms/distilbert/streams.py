"""CUDA streams: micro-batches side by side on a GPU, which within a run waits neither for copies nor for Python."""

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
        # The last that was given back is lent first, so that one that is not needed takes no memory.
        self._free: queue.LifoQueue[torch.cuda.Stream] = queue.LifoQueue()
        if device.type == "cuda":
            # The weights were put there in another stream.
            torch.cuda.current_stream(device).synchronize()
            for _ in range(count):
                self._free.put(torch.cuda.Stream(device))  # type: ignore[no-untyped-call]

    @contextmanager
    def borrowed(self) -> Iterator[None]:
        """What the calling thread does on the GPU is done in a stream that no other has; waits until one is free."""
        if self._device.type != "cuda":
            yield
            return
        stream = self._free.get()
        try:
            # A stream alone would, at its end, make a context on the first GPU in threads that have none.
            with torch.cuda.device(self._device), torch.cuda.stream(stream):
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
