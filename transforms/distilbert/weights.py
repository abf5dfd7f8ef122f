"""Tensors of a checkpoint, memory-mapped and brought to the compute dtype."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional

from distilbeam.transforms.errors import CheckpointError

from .checkpoint import Checkpoint
from .files import shown

__all__ = ["Linear", "Weights"]


class Linear:
    """``x @ weight.T + bias`` in the dtype of ``x``.

    On CPUs without bfloat16 instructions the weight is held as float32 (with bfloat16's values) and the product is
    computed in float32, then rounded: the same arithmetic as bfloat16 instructions, several times faster than emulating
    them.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor) -> None:
        self.weight = weight
        self.bias = bias

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., in]; returns [..., out]."""
        if x.dtype == self.weight.dtype:
            return functional.linear(x, self.weight, self.bias)
        return functional.linear(x.to(self.weight.dtype), self.weight, self.bias).to(x.dtype)


class Weights:
    """The tensors of one checkpoint for one device and dtype.

    float32 weights that are used as stored stay views of the mapped file, shared by all processes of the machine.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, widen: bool = False) -> None:
        """Open a checkpoint's weights.

        Args:
            widen: keep the weights of linear layers as float32, holding the values of ``dtype``.
        """
        self._path = checkpoint.weights.path
        try:
            with checkpoint.weights.unchanged():
                self._file: Any = safe_open(str(self._path), framework="pt")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot open {shown(self._path)}: {type(error).__name__}; copy it again") from None
        self._prefix = checkpoint.prefix
        self._device = device
        self._dtype = dtype
        self._widen = widen

    def tensor(self, name: str, *, encoder: bool = True) -> torch.Tensor:
        """A tensor by its name without prefix; ``encoder=False`` for those of a head.

        Raises:
            CheckpointError: not all of its values are finite.
        """
        name = self._prefix + name if encoder else name
        stored: torch.Tensor = self._file.get_tensor(name)
        tensor = stored.to(self._device, self._dtype)
        if not torch.isfinite(tensor).all():
            cure = "take the checkpoint as it was published"
            if torch.isfinite(stored).all():
                cure = f"they do not fit into {str(self._dtype).removeprefix('torch.')}: choose another dtype"
            raise CheckpointError(f"{shown(self._path)}: {name} has values that are not finite; {cure}")
        return tensor

    def linear(self, name: str, *, encoder: bool = True) -> Linear:
        """A linear layer; its weight is [out, in]."""
        layer = Linear(self.tensor(f"{name}.weight", encoder=encoder), self.tensor(f"{name}.bias", encoder=encoder))
        return Linear(layer.weight.float(), layer.bias.float()) if self._widen else layer

    def norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a layer norm, each [dim]."""
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")

    @staticmethod
    def fuse(layers: Sequence[Linear]) -> Linear:
        """Layers of equal input as one, outputs side by side."""
        return Linear(torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers]))
