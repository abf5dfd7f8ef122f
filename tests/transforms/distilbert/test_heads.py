"""Class probabilities against DistilBertForSequenceClassification."""

from typing import Any

import numpy as np
import pytest
import torch

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.encoder import PackedEncoder
from distilbeam.transforms.distilbert.heads import ClassificationHead
from distilbeam.transforms.distilbert.packed import Packed
from distilbeam.transforms.distilbert.weights import Arithmetic, Weights
from tests.checkpoints import Checkpoints


@pytest.mark.parametrize(
    ("name", "classes", "exclusive"), [("classifier", 2, True), ("three_classes", 3, True), ("multi_label", 3, False)]
)
def test_probabilities_are_hugging_faces(
    checkpoints: Checkpoints, ragged: list[list[int]], hugging_face: Any, name: str, classes: int, exclusive: bool
) -> None:
    folder = getattr(checkpoints, name)
    checkpoint = Checkpoint.open(folder)
    weights = Weights(checkpoint, torch.device("cpu"), Arithmetic(torch.float32, torch.float32))
    packed = Packed.build(
        np.array([token for row in ragged for token in row], dtype=np.int32),
        np.array([len(row) for row in ragged], dtype=np.int64),
    )
    with torch.inference_mode():
        hidden = PackedEncoder(weights, checkpoint.config)(packed)
        ours = ClassificationHead(weights, checkpoint.scores_by)(hidden, packed)
    logits = hugging_face.logits(folder, ragged)
    assert (ours.shape, ours.dtype) == ((len(ragged), classes), torch.float32)
    torch.testing.assert_close(ours, logits.softmax(1) if exclusive else logits.sigmoid(), atol=1e-5, rtol=0)
    assert float(ours.std(0).min()) > 0.01
