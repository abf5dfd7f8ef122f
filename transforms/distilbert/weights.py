"""Tensors of a checkpoint, memory-mapped and brought to the dtypes that are computed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from distilbeam.transforms.errors import CheckpointError

from .attention import Attention, attend_by_runs
from .checkpoint import Checkpoint
from .files import shown
from .linear import Linear

__all__ = ["Arithmetic", "Weights"]


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """How an encoder computes.

    Attributes:
        hidden: dtype of hidden states, and of all that is no linear layer.
        weights: dtype that the weights of its linear layers are read in.
        linear: makes such a layer of weight, [out, in], and bias, [out].
        attention: between the tokens of a row.
        multiple: micro-batches are filled up to a multiple of so many tokens.
    """

    hidden: torch.dtype
    weights: torch.dtype
    linear: Callable[[torch.Tensor, torch.Tensor], Linear] = Linear
    attention: Attention = attend_by_runs
    multiple: int = 1


class Weights:
    """The tensors of one checkpoint for one device and arithmetic.

    float32 embeddings that are used as stored stay views of the mapped file, shared by all processes of the machine.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, arithmetic: Arithmetic) -> None:
        """Open a checkpoint's weights."""
        self._path = checkpoint.weights.path
        self._files: dict[str, Any] = {}
        for file in checkpoint.weights.files:
            try:
                with file.unchanged():
                    opened: Any = safe_open(str(file.path), framework="pt")
                self._files |= dict.fromkeys(opened.keys(), opened)
            except (SafetensorError, OSError) as error:
                raise CheckpointError(
                    f"cannot open {shown(file.path)}: {type(error).__name__}; copy it again"
                ) from None
        self._prefix = checkpoint.prefix
        self._device = device
        self.arithmetic = arithmetic

    def tensor(self, name: str, *, encoder: bool = True, dtype: torch.dtype | None = None) -> torch.Tensor:
        """A tensor by its name without prefix; ``encoder=False`` for those of a head.

        Args:
            dtype: None for that of hidden states.

        Raises:
            CheckpointError: not all of its values are finite.
        """
        dtype = dtype or self.arithmetic.hidden
        name = self._prefix + name if encoder else name
        stored: torch.Tensor = self._files[name].get_tensor(name)
        tensor = stored.to(self._device, dtype)
        if not torch.isfinite(tensor).all():
            cure = "take the checkpoint as it was published"
            if torch.isfinite(stored).all():
                cure = f"they do not fit into {str(dtype).removeprefix('torch.')}: choose another dtype"
            raise CheckpointError(f"{shown(self._path)}: {name} has values that are not finite; {cure}")
        return tensor

    def linear(self, *names: str) -> Linear:
        """A linear layer of the encoder, or several of equal input as one, their outputs side by side."""
        weights, biases = (
            [self.tensor(f"{name}.{part}", dtype=self.arithmetic.weights) for name in names]
            for part in ("weight", "bias")
        )
        if len(names) == 1:
            return self.arithmetic.linear(weights[0], biases[0])
        return self.arithmetic.linear(torch.cat(weights), torch.cat(biases))

    def head(self, name: str) -> Linear:
        """A linear layer of a head, which computes as hidden states do."""
        return Linear(self.tensor(f"{name}.weight", encoder=False), self.tensor(f"{name}.bias", encoder=False))

    def norm(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of a layer norm, each [dim]."""
        return self.tensor(f"{name}.weight"), self.tensor(f"{name}.bias")
