"""Attention inside the rows of a micro-batch, in each way that some hardware is fast at."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch.nn import functional

from .packed import Packed

__all__ = ["Attention", "attend_by_rows", "attend_by_runs", "choose_attention", "is_right_by_rows"]

_log = logging.getLogger(__name__)

# Queries, keys and values of all tokens, [tokens, 3 * dim], their rows and the number of heads; gives [tokens, dim].
Attention: TypeAlias = Callable[[torch.Tensor, Packed, int], torch.Tensor]

_TRIAL_LENGTHS = (1, 2, 2, 17, 64, 130)
_TOLERANCE = 0.05  # of values of about 1 in 16 bits


def attend_by_runs(qkv: torch.Tensor, packed: Packed, heads: int) -> torch.Tensor:
    """Softmax attention, once for every run of rows of equal length."""
    tokens, width = qkv.shape
    out = qkv.new_empty((tokens, width // 3))
    stop = 0
    for start, rows, length in packed.runs:
        stop = start + rows * length
        # [3, rows, heads, length, dim per head]
        query, key, value = qkv[start:stop].view(rows, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value)
        out[start:stop].view(rows, length, heads, -1).copy_(attended.transpose(1, 2))
    out[stop:].zero_()
    return out


def attend_by_rows(qkv: torch.Tensor, packed: Packed, heads: int) -> torch.Tensor:
    """Softmax attention in one kernel for rows of any lengths, on GPUs in 16 bits (Dao et al. 2022, FlashAttention)."""
    from torch.nn.attention import varlen

    query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    offsets, longest = packed.offsets, packed.longest
    attended = varlen.varlen_attn(query, key, value, offsets, offsets, longest, longest, **_unsplit())
    return cast(torch.Tensor, attended).reshape(len(qkv), -1)


@functools.cache
def _unsplit() -> dict[str, Any]:
    """What lets the kernel take the keys of a row in one piece, so that a row does not depend on those beside it."""
    from torch.nn.attention import varlen

    known = "num_splits" in inspect.signature(varlen.varlen_attn).parameters and torch.version.hip is None
    return {"num_splits": 1} if known else {}


def choose_attention(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> Attention:
    """The way that is fastest here and right: one kernel for all rows where torch has one, else by runs."""
    fits = device.type == "cuda" and dtype in (torch.float16, torch.bfloat16)
    return attend_by_rows if fits and is_right_by_rows(device, dtype, heads, dim) else attend_by_runs


def is_right_by_rows(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> bool:
    """Whether torch has a kernel for all rows here, and it gives what attention by runs gives."""
    lengths = np.array(_TRIAL_LENGTHS, dtype=np.int64)
    packed = Packed.build(np.zeros(lengths.sum(), dtype=np.int32), lengths, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(packed.ids), 3 * dim, generator=generator).to(device, dtype)
    try:
        found = attend_by_rows(qkv, packed, heads)
        error = float((found - attend_by_runs(qkv, packed, heads)).abs().max())
    except (ImportError, NotImplementedError, RuntimeError, TypeError, ValueError) as failure:
        _log.info("attention runs by rows of equal length: torch has no kernel here (%s)", type(failure).__name__)
        return False
    if not error <= _TOLERANCE:
        _log.warning("attention runs by rows of equal length: torch's kernel errs by %.3g here", error)
        return False
    return True
