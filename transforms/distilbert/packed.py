"""DistilBERT's encoder on packed rows: no padding is stored, multiplied or attended to.

Sanh et al. 2019, "DistilBERT, a distilled version of BERT". All rows of a micro-batch lie end to end in one
``[tokens, dim]`` tensor; only attention needs to know where a row ends, and runs once for every run of equal lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from .checkpoint import ModelConfig
from .linear import Linear
from .weights import Weights

__all__ = ["Packed", "PackedEncoder"]

_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Packed:
    """The rows of one micro-batch, end to end, on the device.

    Attributes:
        ids: int64[tokens].
        positions: int64[tokens], position of each token in its row.
        starts: int64[rows], where each row begins.
        runs: (first token, rows, length) of each run of neighbouring rows of equal length.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    starts: torch.Tensor
    runs: tuple[tuple[int, int, int], ...]

    @classmethod
    def build(
        cls, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], device: torch.device | str = "cpu"
    ) -> Packed:
        """Pack rows given end to end.

        Args:
            ids: int32[tokens].
            lengths: int64[rows], each at least 1, summing up to ``tokens``.
        """
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        positions = np.arange(len(ids), dtype=np.int64) - np.repeat(starts, lengths)
        edges = np.flatnonzero(np.diff(lengths, prepend=-1, append=-1))
        runs = tuple(
            (int(starts[first]), int(stop - first), int(lengths[first])) for first, stop in pairwise(edges.tolist())
        )
        return cls(
            ids=torch.from_numpy(ids.astype(np.int64)).to(device),
            positions=torch.from_numpy(positions).to(device),
            starts=torch.from_numpy(starts).to(device),
            runs=runs,
        )


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
        self._heads = config.n_heads
        self._gelu = config.activation == "gelu"

    def __call__(self, hidden: torch.Tensor, runs: tuple[tuple[int, int, int], ...]) -> torch.Tensor:
        dim = (hidden.shape[1],)
        attended = self.out(self._attend(self.qkv(hidden), runs))
        hidden = functional.layer_norm(attended.add_(hidden), dim, *self.attention_norm, _EPSILON)
        inner = self.lin1.gelu(hidden) if self._gelu else functional.relu_(self.lin1(hidden))
        return functional.layer_norm(self.lin2(inner).add_(hidden), dim, *self.output_norm, _EPSILON)

    def change_linears(self, change: Callable[[Linear], Linear]) -> None:
        self.qkv, self.out, self.lin1, self.lin2 = map(change, (self.qkv, self.out, self.lin1, self.lin2))

    def _attend(self, qkv: torch.Tensor, runs: tuple[tuple[int, int, int], ...]) -> torch.Tensor:
        """Softmax attention inside each row. qkv: [tokens, 3 * dim]; returns [tokens, dim]."""
        tokens, width = qkv.shape
        dim = width // 3
        out = qkv.new_empty((tokens, dim))
        for start, rows, length in runs:
            stop = start + rows * length
            # [3, rows, heads, length, dim per head]
            query, key, value = qkv[start:stop].view(rows, length, 3, self._heads, -1).permute(2, 0, 3, 1, 4)
            attended = functional.scaled_dot_product_attention(query, key, value)
            out[start:stop].view(rows, length, self._heads, -1).copy_(attended.transpose(1, 2))
        return out


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
            hidden = layer(hidden, packed.runs)
        return hidden

    def change_linears(self, change: Callable[[Linear], Linear]) -> None:
        """Put what a function makes of it in the place of each linear layer."""
        for layer in self._layers:
            layer.change_linears(change)
