"""transformers and sentence-transformers, as their documentation shows them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from . import Embedder, Setup

__all__ = [
    "load_model",
    "load_tokenizer",
    "mean_pool",
    "pipeline",
    "sentences",
    "sentences_flash",
    "sentences_openvino",
]

_BATCH = 32
_GPU_BATCH = 256


def pipeline(setup: Setup) -> Embedder:
    """The feature-extraction pipeline, batches of 32 as they come.

    Its vector is that of [CLS]: the pipeline keeps the mask to itself, without which padding would go into a mean.
    """
    from transformers import pipeline as make

    extract: Any = make(
        "feature-extraction",
        model=load_model(setup),
        tokenizer=load_tokenizer(setup),
        device=torch.device(setup.device),
    )
    cut = {"truncation": True, "max_length": setup.max_length}

    def embed(texts: list[str]) -> Any:
        found = extract(texts, batch_size=_BATCH, return_tensors=True, tokenize_kwargs=cut)
        return np.stack([one[0, 0].float().cpu().numpy() for one in found])

    return embed


def sentences(setup: Setup) -> Embedder:
    """SentenceTransformer.encode, batches of 32 (on a GPU 256) sorted by length, as it does by itself."""
    return _sentences(setup, model_kwargs={"dtype": getattr(torch, setup.dtype)})


def sentences_flash(setup: Setup) -> Embedder:
    """The same with FlashAttention."""
    settings = {"dtype": getattr(torch, setup.dtype), "attn_implementation": "flash_attention_2"}
    return _sentences(setup, model_kwargs=settings)


def sentences_openvino(setup: Setup) -> Embedder:
    """The same with its OpenVINO backend."""
    # It looks for an exported model before it makes one, and says what it does each time.
    return _sentences(setup, backend="openvino", model_kwargs={"export": True})


def _sentences(setup: Setup, **settings: Any) -> Embedder:
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(setup.model), device=setup.device, **settings)
    model.max_seq_length = setup.max_length
    batch = _BATCH if setup.device == "cpu" else _GPU_BATCH

    def embed(texts: list[str]) -> Any:
        vectors = model.encode(texts, batch_size=batch, show_progress_bar=False, convert_to_tensor=True)
        return vectors.float().cpu().numpy()

    return embed


def load_model(setup: Setup) -> Any:
    """The encoder in the dtype of the setup, on its device."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model: Any = AutoModel.from_pretrained(setup.model, dtype=getattr(torch, setup.dtype))
    return model.eval().to(setup.device)


def load_tokenizer(setup: Setup) -> Any:
    """The tokenizer of the checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(setup.model)


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, length, dim] and [rows, length] to float32[rows, dim]."""
    weights = mask.unsqueeze(-1).float()
    return (hidden.float() * weights).sum(dim=1) / weights.sum(dim=1)
