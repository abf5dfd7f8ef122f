"""The random checkpoint is one that Hugging Face loads whole, and gives the same vectors there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.checkpoint import SHAPES, read_shape, save_random
from benchmarks.peers import agreement, padded_batches
from distilbeam.transforms import Encoder

TEXTS = ["a film", "two words and a number 7", "it is long, " * 20, "unheard-of zxqv"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random(tmp_path_factory.mktemp("model") / "tiny", SHAPES["tiny"])


@pytest.fixture(scope="module")
def theirs(model: Path) -> np.ndarray:
    """Hugging Face's vectors, each text alone."""
    loaded, report = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(model)
    with torch.no_grad():
        hidden = [loaded.distilbert(**tokenizer(text, return_tensors="pt"))[0][0] for text in TEXTS]
    return np.stack([row.mean(dim=0).numpy() for row in hidden])


def test_vectors_agree(model: Path, theirs: np.ndarray) -> None:
    ours = Encoder.load(str(model), dtype="float32").embed(TEXTS)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert agreement(ours, theirs) > 0.9999


def test_wrong_vectors_do_not_agree(theirs: np.ndarray) -> None:
    assert agreement(theirs, theirs) == pytest.approx(1)
    assert agreement(theirs, theirs[::-1].copy()) < 0.9
    assert agreement(theirs, theirs[:, ::-1].copy()) < 0.9
    assert agreement(theirs, np.roll(theirs, 1, axis=0)) < 0.9
    assert agreement(theirs, theirs[:3]) == -1
    assert agreement(theirs, np.where(np.arange(4)[:, None] == 2, np.nan, theirs)) == -1


def test_the_shape_can_be_read_again(model: Path) -> None:
    assert read_shape(model) == SHAPES["tiny"]


def test_a_vocabulary_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size is 7"):
        save_random(tmp_path, replace(SHAPES["tiny"], vocab_size=7))


def test_batches_hold_each_row_once_within_the_budget() -> None:
    lengths = np.random.default_rng(1).integers(0, 90, 200).tolist()
    batches = padded_batches(lengths, 64)
    assert sorted(row for batch in batches for row in batch) == list(range(200))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 64
