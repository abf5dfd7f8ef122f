"""The formula of what a row costs, against what torch counts in Hugging Face's own model."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertModel

from benchmarks.checkpoint import SHAPES, Shape
from benchmarks.flops import attention_flops, gemm_shapes, linear_flops, row_flops

SMALL = Shape(dim=48, n_layers=3, n_heads=4, hidden_dim=80, vocab_size=100, max_position_embeddings=40)


def counted(shape: Shape, rows: int, length: int) -> int:
    """FLOPs of the matrix products of a forward pass of so many rows of one length."""
    settings = {name: getattr(shape, name) for name in Shape.__dataclass_fields__}
    model = DistilBertModel(DistilBertConfig(**settings, attn_implementation="eager")).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.zeros(rows, length, dtype=torch.long))
    return counter.get_total_flops()


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 17), (3, 40)])
def test_rows_cost_what_torch_counts(rows: int, length: int) -> None:
    assert row_flops([length] * rows, SMALL) == counted(SMALL, rows, length)


def test_a_token_of_the_base_shape_costs_what_torch_counts() -> None:
    assert row_flops([2], SHAPES["base"]) == counted(SHAPES["base"], 1, 2)


def test_the_base_shape_costs_what_is_published() -> None:
    assert linear_flops(SHAPES["base"]) == pytest.approx(84.9e6, rel=1e-3)
    assert attention_flops(SHAPES["base"]) == 18_432
    assert gemm_shapes(SHAPES["base"]) == ((768, 2304), (768, 768), (768, 3072), (3072, 768))


def test_padding_costs_nothing() -> None:
    assert row_flops([5, 7], SMALL) == row_flops([5], SMALL) + row_flops([7], SMALL) < row_flops([7, 7], SMALL)
