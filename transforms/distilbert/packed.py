"""The rows of a micro-batch, end to end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["Packed"]


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows of one micro-batch, end to end, on the device; no padding between them.

    Attributes:
        ids: int32[tokens]. What follows on the last row, if anything, only fills the micro-batch up.
        positions: int32[tokens], position of each token in its row.
        offsets: int32[rows + 1], where each row begins, and where the last one ends.
        runs: (first token, rows, length) of each run of neighbouring rows of equal length.
        longest: tokens in the longest row.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    offsets: torch.Tensor
    runs: tuple[tuple[int, int, int], ...]
    longest: int

    @property
    def starts(self) -> torch.Tensor:
        """int32[rows], where each row begins."""
        return self.offsets[:-1]

    @classmethod
    def build(
        cls,
        ids: npt.NDArray[np.int32],
        lengths: npt.NDArray[np.int64],
        device: torch.device | str = "cpu",
        multiple: int = 1,
    ) -> Packed:
        """Pack rows given end to end.

        Args:
            ids: int32[tokens].
            lengths: int64[rows], each at least 1, summing up to ``tokens``.
            device: where the tensors are put; on a GPU in one copy, which the calling thread does not wait for.
            multiple: what the number of tokens is filled up to, by the id 0 at position 0.
        """
        rows, tokens = len(lengths), len(ids)
        filled = -(-tokens // multiple) * multiple
        # One buffer for one copy.
        buffer = np.zeros(2 * filled + rows + 1, dtype=np.int32)
        offsets = buffer[2 * filled :]
        np.cumsum(lengths, out=offsets[1:])
        buffer[:tokens] = ids
        buffer[filled : filled + tokens] = np.arange(tokens, dtype=np.int32) - np.repeat(offsets[:-1], lengths)
        edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
        runs = tuple(
            (int(offsets[first]), int(stop - first), int(lengths[first])) for first, stop in pairwise(edges.tolist())
        )
        there = _sent(torch.from_numpy(buffer), torch.device(device))
        return cls(
            ids=there[:filled],
            positions=there[filled : 2 * filled],
            offsets=there[2 * filled :],
            runs=runs,
            longest=int(lengths.max()),
        )


def _sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    if device.type == "cpu":
        return tensor
    # Only from pinned memory does a copy run beside the work of the calling thread and of other streams.
    return tensor.pin_memory().to(device, non_blocking=True)
