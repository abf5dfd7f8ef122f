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

__all__ = ["Attention", "attend_at_once", "attend_by_runs", "choose_attention", "is_right_at_once"]

_log = logging.getLogger(__name__)

# Queries, keys and values of all tokens, [tokens, 3 * dim], their rows and the number of heads; gives [tokens, dim].
Attention: TypeAlias = Callable[[torch.Tensor, Packed, int], torch.Tensor]

_LEAST_CAPABILITY = (8, 0)  # Ampere
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
    if stop < tokens:
        out[stop:].zero_()
    return out


def attend_at_once(qkv: torch.Tensor, packed: Packed, heads: int, *, split: bool = False) -> torch.Tensor:
    """Softmax attention in one kernel for rows of any lengths, on GPUs in 16 bits (Dao et al. 2022, FlashAttention).

    Args:
        qkv: queries, keys and values, [tokens, 3 * dim].
        packed: the rows; nothing may be filled up.
        heads: of the model.
        split: whether the kernel may divide the keys of a row as the rows beside it suggest, which changes the last
            bits of what a row gives; then torch also takes cuDNN's kernel where that is to be had.
    """
    from torch.nn.attention import varlen

    query, key, value = qkv.view(len(qkv), 3, heads, -1).unbind(1)
    offsets, longest = packed.offsets, packed.longest
    settings = {} if split else _keys_in_one_piece()
    attended = varlen.varlen_attn(query, key, value, offsets, offsets, longest, longest, **settings)
    return cast(torch.Tensor, attended).reshape(len(qkv), -1)


@functools.cache
def _keys_in_one_piece() -> dict[str, Any]:
    """The setting of this torch with which a row does not depend on those beside it, if there is one."""
    from torch.nn.attention import varlen

    known = "num_splits" in inspect.signature(varlen.varlen_attn).parameters and torch.version.hip is None
    return {"num_splits": 1} if known else {}


def choose_attention(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> Attention:
    """The way that is fastest here and right: one kernel for all rows where torch has one, else by runs."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return attend_by_runs
    # Asked first, since to import torch's module takes seconds.
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        return attend_by_runs
    return attend_at_once if is_right_at_once(device, dtype, heads, dim) else attend_by_runs


def is_right_at_once(device: torch.device, dtype: torch.dtype, heads: int, dim: int) -> bool:
    """Whether torch has a kernel for all rows here, and it gives what attention by runs gives."""
    lengths = np.array(_TRIAL_LENGTHS, dtype=np.int64)
    packed = Packed.build(np.zeros(lengths.sum(), dtype=np.int32), lengths, device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(len(packed.ids), 3 * dim, generator=generator).to(device, dtype)
    try:
        found = attend_at_once(qkv, packed, heads)
        error = float((found - attend_by_runs(qkv, packed, heads)).abs().max())
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of operators that not every torch has, and that check in many ways
        _log.info("attention runs by rows of equal length: no kernel here (%s: %s)", type(failure).__name__, failure)
        return False
    if not error <= _TOLERANCE:
        _log.warning("attention runs by rows of equal length: torch's kernel errs by %.3g here", error)
        return False
    return True
