"""From the hidden states of a row's tokens to one vector."""

from __future__ import annotations

import torch

from .packed import Packed

__all__ = ["pool", "pool_at_once", "pool_by_runs"]


def pool(hidden: torch.Tensor, packed: Packed, mode: str) -> torch.Tensor:
    """One vector per row, special tokens included as sentence-transformers does.

    Args:
        hidden: [tokens, dim].
        packed: the rows of ``hidden``.
        mode: ``mean``, ``max`` or ``cls``.

    Returns:
        float32[rows, dim].
    """
    if mode == "cls":
        return hidden.index_select(0, packed.starts).float()
    # On a GPU every call has its price, on a CPU the one call for all rows is many times slower.
    return (pool_at_once if hidden.is_cuda else pool_by_runs)(hidden, packed, mode)


def pool_by_runs(hidden: torch.Tensor, packed: Packed, mode: str) -> torch.Tensor:
    """``mean`` or ``max``, once for every run of rows of equal length."""
    pooled = []
    for start, rows, length in packed.runs:
        states = hidden[start : start + rows * length].view(rows, length, -1).float()
        pooled.append(states.mean(1) if mode == "mean" else states.amax(1))
    return torch.cat(pooled)


def pool_at_once(hidden: torch.Tensor, packed: Packed, mode: str) -> torch.Tensor:
    """``mean`` or ``max``, in one call for rows of any lengths."""
    return torch.segment_reduce(hidden.float(), mode, offsets=packed.offsets, axis=0)
