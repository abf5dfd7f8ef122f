"""What stands on top of the encoder, one class per task."""

from __future__ import annotations

import torch
from torch.nn import functional

from .packed import Packed
from .weights import Weights

__all__ = ["ClassificationHead"]


class ClassificationHead:
    """Sequence classification on the first token, as in DistilBertForSequenceClassification."""

    def __init__(self, weights: Weights, *, multi_label: bool) -> None:
        self._pre_classifier = weights.head("pre_classifier")
        self._classifier = weights.head("classifier")
        self._multi_label = multi_label

    def __call__(self, hidden: torch.Tensor, packed: Packed) -> torch.Tensor:
        """Probabilities, float32[rows, classes]: softmax, or sigmoid where classes are independent."""
        logits = self._classifier(functional.relu(self._pre_classifier(hidden.index_select(0, packed.starts)))).float()
        return torch.sigmoid(logits) if self._multi_label else torch.softmax(logits, dim=-1)
