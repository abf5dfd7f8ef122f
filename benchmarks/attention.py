"""The ways of attention on a GPU against each other: one kernel for all rows, or one call per length."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from distilbeam.transforms.batching import micro_batches
from distilbeam.transforms.distilbert.attention import Attention, attend_at_once, attend_by_runs
from distilbeam.transforms.distilbert.packed import Packed

from .measure import interleave
from .report import Row

__all__ = ["TITLE", "compare_attention"]

TITLE = "attention of one layer, of all rows"
_WAYS: dict[str, Attention] = {
    "one kernel for all rows": attend_at_once,
    "one kernel for all rows, as torch divides them": partial(attend_at_once, split=True),
    "one call per length": attend_by_runs,
}


def compare_attention(
    lengths: npt.NDArray[np.int64],
    heads: int,
    dim: int,
    *,
    device: str,
    dtype: str,
    token_budget: int,
    repeats: int,
    tell: Callable[[str], object] = print,
) -> list[Row]:
    """Random queries, keys and values of rows of some lengths, sorted and cut under a token budget.

    Args:
        lengths: int64[rows], tokens in each row.
        heads: of the model.
        dim: of its hidden states.
    """
    batches = [
        Packed.build(np.zeros(int(lengths[rows].sum()), dtype=np.int32), lengths[rows], device)
        for rows in micro_batches(lengths, token_budget)
    ]
    largest = max(len(packed.ids) for packed in batches)
    qkv = torch.randn(largest, 3 * dim, device=device).to(getattr(torch, dtype))
    works: dict[str, Callable[[], object]] = {}
    rows = []
    for name, attend in _WAYS.items():
        work = partial(_all, attend, batches, qkv, heads)
        try:
            work()
        except Exception as error:  # of operators that not every torch and device has
            rows.append(Row(TITLE, f"{name}, {dtype}", note=f"does not run here: {type(error).__name__}"))
        else:
            works[name] = work
    seconds = interleave(works, repeats, tell)
    tokens = int(lengths.sum())
    facts: dict[str, float | str] = {"micro-batches": len(batches)}
    for name, times in seconds.items():
        rows.append(Row(TITLE, f"{name}, {dtype}", {"tokens/s": [tokens / time for time in times]}, facts))
    return rows


@torch.inference_mode()
def _all(attend: Attention, batches: list[Packed], qkv: torch.Tensor, heads: int) -> None:
    for packed in batches:
        attend(qkv[: len(packed.ids)], packed, heads)
    if qkv.is_cuda:
        torch.cuda.synchronize(qkv.device)
