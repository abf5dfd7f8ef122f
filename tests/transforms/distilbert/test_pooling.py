"""Pooling of packed rows against masked pooling of padded ones."""

import numpy as np
import pytest
import torch

from distilbeam.transforms.distilbert.packed import Packed
from distilbeam.transforms.distilbert.pooling import pool, pool_at_once, pool_by_runs

LENGTHS = [3, 3, 1, 7, 2, 2, 2, 5, 1, 1]


def padded(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """[rows, longest, dim] filled up with large numbers, and the mask [rows, longest, 1]."""
    rows = hidden.split(LENGTHS)
    states = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e6)
    mask = torch.arange(states.shape[1]) < torch.tensor(LENGTHS)[:, None]
    return states, mask[:, :, None]


@pytest.mark.parametrize("mode", ["mean", "max", "cls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pooling_is_that_of_masked_rows(mode: str, dtype: torch.dtype) -> None:
    hidden = torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    packed = Packed.build(np.zeros(sum(LENGTHS), dtype=np.int32), np.array(LENGTHS, dtype=np.int64))
    states, mask = padded(hidden)
    expected = {
        "mean": (states.double() * mask).sum(1) / mask.sum(1),
        "max": states.masked_fill(~mask, -torch.inf).amax(1),
        "cls": states[:, 0],
    }[mode]
    for way in (pool,) if mode == "cls" else (pool, pool_at_once):
        pooled = way(hidden, packed, mode)
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, expected.float(), atol=1e-6, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["mean", "max"])
def test_a_gpu_pools_all_rows_at_once(mode: str) -> None:
    hidden = torch.randn(sum(LENGTHS), 16, generator=torch.Generator().manual_seed(2)).to("cuda", torch.bfloat16)
    packed = Packed.build(np.zeros(sum(LENGTHS), dtype=np.int32), np.array(LENGTHS, dtype=np.int64), "cuda")
    torch.testing.assert_close(pool_at_once(hidden, packed, mode), pool_by_runs(hidden, packed, mode))
    assert torch.equal(pool(hidden, packed, mode), pool_at_once(hidden, packed, mode))
