"""Linear layers, in each way of multiplying matrices that some hardware is fast at."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

__all__ = ["Linear", "PrepackedLinear", "RoundedLinear", "exact_linear"]

_LEAST = 1 << 17  # values in a weight; products with smaller ones are not faster by oneDNN's own call


class Linear:
    """``x @ weight.T + bias`` in the dtype of weight and x, which are one."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        """Take the weight, [out, in], and the bias, [out]."""
        self._weight = weight
        self._bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in]; returns [..., out], a tensor of its own."""
        return functional.linear(x, self._weight, self._bias)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        """GELU (by erf, as DistilBERT's) of the layer's output."""
        return functional.gelu(self(x))


class PrepackedLinear(Linear):
    """A layer on a CPU whose weight is laid out once as oneDNN reads it, and not again for every product."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__(torch.ops.mkldnn._reorder_linear_weight(weight, None), bias)
        # In float32 oneDNN takes longer for a GELU of its own than a pass of torch does.
        self._fused = weight.dtype == torch.bfloat16

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "none", [], "")
        return found

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        if not self._fused:
            return super().gelu(x)
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, "gelu", [], "none")
        return found


class RoundedLinear(Linear):
    """bfloat16 on CPUs without instructions for it.

    The weight is held as float32, with bfloat16's values, and the product is computed in float32, then rounded: the
    same arithmetic as bfloat16 instructions, several times faster than emulating them.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self._wide = exact_linear(weight.float(), bias.float())

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._wide(x.float()).to(x.dtype)


def exact_linear(weight: torch.Tensor, bias: torch.Tensor) -> Linear:
    """The fastest layer on a CPU that has instructions for the dtype of weight, [out, in], and bias, [out]."""
    return (PrepackedLinear if weight.numel() >= _LEAST and _prepacks(weight.dtype) else Linear)(weight, bias)


@functools.cache
def _prepacks(dtype: torch.dtype) -> bool:
    """Whether this torch can, by operators that are not public and not in every build."""
    generator = torch.Generator().manual_seed(0)
    weight, bias, x = (torch.randn(*shape, generator=generator).to(dtype) for shape in ((8, 16), (8,), (4, 16)))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    try:
        packed, plain = PrepackedLinear(weight, bias), Linear(weight, bias)
        return all(
            torch.allclose(found, right, atol=tolerance, rtol=0)
            for found, right in ((packed(x), plain(x)), (packed.gelu(x), plain.gelu(x)))
        )
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
