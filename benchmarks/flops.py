"""What a row costs, counted on its real tokens: padding is waste and counts for nothing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .checkpoint import Shape

__all__ = ["attention_flops", "gemm_shapes", "linear_flops", "row_flops"]


def gemm_shapes(shape: Shape) -> tuple[tuple[int, int], ...]:
    """(in, out) of the products of a layer: query, key and value in one; output; both of the feed-forward."""
    dim, hidden = shape.dim, shape.hidden_dim
    return (dim, 3 * dim), (dim, dim), (dim, hidden), (hidden, dim)


def linear_flops(shape: Shape) -> int:
    """FLOPs of all matrix products with weights, for one token: 84.9 million for the base shape."""
    return shape.n_layers * sum(2 * rows * columns for rows, columns in gemm_shapes(shape))


def attention_flops(shape: Shape) -> int:
    """FLOPs of both products of attention in all layers, for a row of one token; they grow with its square."""
    return shape.n_layers * 4 * shape.dim


def row_flops(lengths: npt.ArrayLike, shape: Shape) -> int:
    """FLOPs of the encoder for rows of so many tokens, special tokens included; what is no matrix product is left out.

    Args:
        lengths: int[rows].
    """
    tokens = np.asarray(lengths, dtype=np.int64)
    return int(linear_flops(shape) * tokens.sum() + attention_flops(shape) * np.square(tokens).sum())
