"""DistilBERT's encoder on packed rows: no padding is stored, multiplied or attended to.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT". All rows of a micro-batch lie end to end in one
``[tokens, dim]`` tensor; only attention needs to know where a row ends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from .checkpoint import ModelConfig
from .linear import Linear
from .packed import Packed
from .weights import Weights

__all__ = ["PackedEncoder"]

_EPSILON = 1e-12


class _Layer:
    """One transformer block; query, key and value come from one matrix product."""

    def __init__(self, weights: Weights, index: int, config: ModelConfig) -> None:
        name = f"transformer.layer.{index}"
        self.qkv = weights.linear(*(f"{name}.attention.{part}_lin" for part in "qkv"))
        self.out = weights.linear(f"{name}.attention.out_lin")
        self.attention_norm = weights.norm(f"{name}.sa_layer_norm")
        self.lin1 = weights.linear(f"{name}.ffn.lin1")
        self.lin2 = weights.linear(f"{name}.ffn.lin2")
        self.output_norm = weights.norm(f"{name}.output_layer_norm")
        self._attend = weights.arithmetic.attention
        self._heads = config.n_heads
        self._gelu = config.activation == "gelu"

    def __call__(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        dim = (hidden.shape[1],)
        attended = self.out(self._attend(self.qkv(hidden), packed, self._heads))
        hidden = functional.layer_norm(attended.add_(hidden), dim, *self.attention_norm, _EPSILON)
        inner = self.lin1.gelu(hidden) if self._gelu else functional.relu_(self.lin1(hidden))
        return functional.layer_norm(self.lin2(inner).add_(hidden), dim, *self.output_norm, _EPSILON)

    def change_linears(self, change: Callable[[Linear], Linear]) -> None:
        self.qkv, self.out, self.lin1, self.lin2 = map(change, (self.qkv, self.out, self.lin1, self.lin2))


class PackedEncoder:
    """Token ids in, last hidden states out."""

    def __init__(self, weights: Weights, config: ModelConfig) -> None:
        self._words = weights.tensor("embeddings.word_embeddings.weight")
        self._positions = weights.tensor("embeddings.position_embeddings.weight")
        self._norm = weights.norm("embeddings.LayerNorm")
        self._layers = [_Layer(weights, index, config) for index in range(config.n_layers)]

    def __call__(self, packed: Packed) -> torch.Tensor:
        """Last hidden state of every token, [tokens, dim] in the compute dtype."""
        hidden = functional.embedding(packed.ids, self._words).add_(
            functional.embedding(packed.positions, self._positions)
        )
        hidden = functional.layer_norm(hidden, (hidden.shape[1],), *self._norm, _EPSILON)
        for layer in self._layers:
            hidden = layer(hidden, packed)
        return hidden

    def change_linears(self, change: Callable[[Linear], Linear]) -> None:
        """Put what a function makes of it in the place of each linear layer."""
        for layer in self._layers:
            layer.change_linears(change)
