"""Linear layers in 8-bit integers, where they bear it."""

from __future__ import annotations

import functools
import logging

import numpy as np
import torch

from .checkpoint import ModelConfig
from .encoder import PackedEncoder
from .linear import Linear, exact_linear
from .packed import Packed

__all__ = ["Int8Linear", "TrialLinear", "multiplies_int8", "quantize"]

_log = logging.getLogger(__name__)

_TINY = 1e-30
# Of a layer's output, relative to its norm; what errs by more is left exact. With it labels of a trained classifier
# flip as seldom as they should (0.5% at most), and most layers of weights that are spread normally are reduced.
_MOST_ERROR = 0.018
_TRIAL_LENGTHS = (8, 16, 32, 64, 128, 256, 512)


class Int8Linear(Linear):
    """Products of 8-bit integers: weights scaled by output, inputs by token.

    A token's range is that of its own values, so that what a row gives does not depend on the rows beside it. Dettmers
    et al. 2022, "LLM.int8()", section 2.1, call this vector-wise quantization; here with a zero point, since most that
    comes out of a GELU lies just below 0.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        weight = weight.float()
        self._scales = weight.abs().amax(1).div_(_most_weight()).clamp_min_(_TINY)
        codes = (weight / self._scales[:, None]).round_().to(torch.int8)
        self._codes = torch.ops.onednn.qlinear_prepack(codes, None)
        self._sums = codes.sum(1) * self._scales
        self._bias = bias.float()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [tokens, in]; returns [tokens, out]."""
        least = x.amin(1, keepdim=True).float()
        scale = (x.amax(1, keepdim=True) - least).div_(255).clamp_min_(_TINY)
        # Half of one more, since what follows the point is cut off.
        codes = (x - least).div_(scale).add_(0.5).to(torch.uint8)
        product = _product(codes, self._codes, self._scales)
        return torch.addcmul(self._bias, least, self._sums).addcmul_(product, scale).to(x.dtype)


@functools.cache
def _most_weight() -> int:
    """The largest weight as an integer."""
    # Without VNNI two products are added up in 16 bits: 2 x 255 x 127 would not fit, 2 x 255 x 63 does.
    return 127 if multiplies_int8(127) else 63


def multiplies_int8(most: int) -> bool:
    """Whether sums of products of 255 and weights up to ``most`` come out right here.

    Not everywhere are they added up in 32 bits, and the operators are not public and not in every build of torch.
    """
    weights, inputs = torch.full((16, 512), most).to(torch.int8), torch.full((16, 512), 255, dtype=torch.uint8)
    try:
        found = _product(inputs, torch.ops.onednn.qlinear_prepack(weights, None), torch.ones(16))
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return bool((found == 512 * 255 * most).all())


def _product(codes: torch.Tensor, weights: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """uint8[tokens, in] times prepacked int8[in, out], scaled by float32[out]; float32[tokens, out]."""
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    found: torch.Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, 0, weights, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return found


class TrialLinear(Linear):
    """An exact layer that finds out whether 8-bit integers would do in its place."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, hidden: torch.dtype) -> None:
        """Take weight and bias as float32, and the dtype of inputs."""
        self._exact = exact_linear(weight.to(hidden), bias.to(hidden))
        self._reduced = Int8Linear(weight, bias)
        self._error = float("nan")

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        exact = self._exact(x)
        self._error = float((self._reduced(x) - exact).float().norm() / exact.float().norm())
        return exact

    def settled(self) -> Linear:
        """The layer in 8-bit integers if it erred by little on the last input, else the exact one."""
        return self._reduced if self._error <= _MOST_ERROR else self._exact


def quantize(encoder: PackedEncoder, config: ModelConfig) -> dict[str, int]:
    """Settle what of an encoder of trial layers is computed in 8-bit integers.

    It is tried on random tokens, always the same, so that workers on like CPUs settle on the same layers: the ranges of
    a BERT's activations come from its weights much more than from what it reads.

    Returns:
        ``int8_layers`` of ``linear_layers``, and ``weight_bits`` of the former.
    """
    lengths = np.array([min(length, config.max_position_embeddings) for length in _TRIAL_LENGTHS], dtype=np.int64)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, int(lengths.sum()), dtype=np.int32)
    with torch.inference_mode():
        encoder(Packed.build(ids, lengths))
    settled: list[Linear] = []

    def settle(linear: Linear) -> Linear:
        settled.append(linear.settled() if isinstance(linear, TrialLinear) else linear)
        return settled[-1]

    encoder.change_linears(settle)
    reduced = sum(isinstance(linear, Int8Linear) for linear in settled)
    _log.info("int8 in %d of %d linear layers; those left would err too much in it", reduced, len(settled))
    return {"int8_layers": reduced, "linear_layers": len(settled), "weight_bits": 1 + _most_weight().bit_length()}
