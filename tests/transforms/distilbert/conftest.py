"""Ragged rows of random tokens, and Hugging Face's answer to them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from distilbeam.transforms.tokenization import Tokens
from tests.checkpoints import UNCASED_VOCABULARY


def _tokens(rows: list[list[int]]) -> Tokens:
    return Tokens(
        ids=np.array([token for row in rows for token in row], dtype=np.int32),
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        truncated=np.zeros(len(rows), dtype=np.bool_),
    )


def _hidden(folder: str, rows: list[list[int]]) -> list[torch.Tensor]:
    """Last hidden states in float32, row by row, so that there is no padding: [length, dim] each."""
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return [model(torch.tensor([row])).last_hidden_state[0] for row in rows]


def _logits(folder: str, rows: list[list[int]]) -> torch.Tensor:
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return torch.cat([model(torch.tensor([row])).logits for row in rows])


@pytest.fixture(scope="session")
def ragged() -> list[list[int]]:
    """Rows of every length from 1 to 64 tokens, some lengths more than once, in random order."""
    random = np.random.default_rng(11)
    lengths = random.permutation([*range(1, 65), 1, 1, 2, 7, 7, 7, 33, 64, 64])
    return [random.integers(0, len(UNCASED_VOCABULARY), length).tolist() for length in lengths]


@pytest.fixture(scope="session")
def as_tokens() -> Callable[[list[list[int]]], Tokens]:
    return _tokens


@pytest.fixture(scope="session")
def hugging_face() -> Any:
    """``hidden(folder, rows)`` and ``logits(folder, rows)`` of transformers."""

    class HuggingFace:
        hidden = staticmethod(_hidden)
        logits = staticmethod(_logits)

    return HuggingFace
