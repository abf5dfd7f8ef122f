"""The measurement of attention, with a stand-in for the kernel that needs a GPU."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.nn.attention import varlen

from benchmarks.attention import compare_attention

LENGTHS = np.array([3, 9, 9, 4, 20, 1], dtype=np.int64)
SETTINGS: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "token_budget": 24,
    "repeats": 2,
    "tell": lambda _: None,
}


def test_both_ways_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        seen.append(len(query))
        return functional.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    rows = compare_attention(LENGTHS, 2, 16, **SETTINGS)
    assert [len(row.samples["tokens/s"]) for row in rows] == [2, 2, 2]
    # In two ways, once uncounted and twice counted: all tokens of all micro-batches, 24 at most in each.
    assert sum(seen) == 2 * 3 * LENGTHS.sum()
    assert max(seen) <= 24
    assert rows[0].facts["micro-batches"] == len(seen) // 6


def test_a_way_that_cannot_be_had_is_said() -> None:
    *absent, found = compare_attention(LENGTHS, 2, 16, **SETTINGS)
    assert (found.name, len(found.samples["tokens/s"])) == ("one call per length, float32", 2)
    assert len(absent) == 2
    for row in absent:
        assert row.name.startswith("one kernel for all rows")
        assert not row.samples
        assert "does not run here" in row.note
