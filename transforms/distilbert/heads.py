"""What stands on top of the encoder, one class per task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from .packed import Packed
from .weights import Weights

__all__ = ["ClassificationHead"]


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "softmax": partial(torch.softmax, dim=-1),
    "sigmoid": torch.sigmoid,
    "identity": torch.nn.Identity(),
}


class ClassificationHead:
    """Sequence classification on the first token, as in DistilBertForSequenceClassification."""

    def __init__(self, weights: Weights, scores_by: str) -> None:
        self._pre_classifier = weights.head("pre_classifier")
        self._classifier = weights.head("classifier")
        self._scores_by = _SCORES[scores_by]

    def __call__(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Scores, float32[rows, classes], by softmax, sigmoid or identity."""
        logits = self._classifier(functional.relu(self._pre_classifier(hidden.index_select(0, packed.starts)))).float()
        return self._scores_by(logits)
