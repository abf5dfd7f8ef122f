"""From the hidden states of a row's tokens to one vector."""

from __future__ import annotations

import torch

from .packed import Packed

__all__ = ["pool"]


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
        return hidden[packed.starts].float()
    pooled = []
    for start, rows, length in packed.runs:
        states = hidden[start : start + rows * length].view(rows, length, -1).float()
        pooled.append(states.mean(1) if mode == "mean" else states.amax(1))
    return torch.cat(pooled)
