"""What every transform with a model is, for those who must not import the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import apache_beam as beam

__all__ = ["Stage"]


class Stage(beam.PTransform):
    """A transform with a model, as ``Featurize`` is one; a user's own is none, whatever attributes it has."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determines the output besides the input, as JSON."""
        raise NotImplementedError

    @property
    def identity(self) -> Callable[[], Mapping[str, Any]]:
        """What tells weights, tokenizer and configuration of the model, to be called on a worker."""
        raise NotImplementedError
