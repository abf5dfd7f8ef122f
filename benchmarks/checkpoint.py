"""A DistilBERT to measure with: random weights in a given shape, since speed does not depend on their values."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

__all__ = ["SHAPES", "TINY", "Shape", "read_shape", "save_random", "tensors"]

# It brings the vocabulary of bert-base-uncased, and is itself the quickest model to try things with.
TINY = Path(__file__).parents[1] / "examples" / "distilbert-tiny-sst2"
_TOKENIZER = ("vocab.txt", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a DistilBERT, named as in its config.json."""

    dim: int = 768
    n_layers: int = 6
    n_heads: int = 12
    hidden_dim: int = 3072
    vocab_size: int = 30_522
    max_position_embeddings: int = 512


SHAPES = {
    "base": Shape(),
    "small": Shape(dim=384, hidden_dim=1536),
    "tiny": Shape(dim=128, n_layers=2, n_heads=2, hidden_dim=512),
}


def read_shape(model: Path) -> Shape:
    """The shape of a checkpoint folder; what its config.json leaves out is as in the base shape."""
    config: dict[str, Any] = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return Shape(**{name: config.get(name, default) for name, default in asdict(Shape()).items()})


def save_random(folder: Path, shape: Shape, seed: int = 0) -> Path:
    """Write a checkpoint with two classes and random weights: config.json, model.safetensors and a tokenizer.

    Args:
        shape: its sizes; the vocabulary is that of the example model, so ``vocab_size`` must be 30,522.

    Raises:
        ValueError: the vocabulary has another size.
    """
    if shape.vocab_size != SHAPES["base"].vocab_size:
        raise ValueError(f"vocab_size is {shape.vocab_size}; the tokenizer at hand has {SHAPES['base'].vocab_size}")
    folder.mkdir(parents=True, exist_ok=True)
    config = asdict(shape) | {
        "activation": "gelu",
        "architectures": ["DistilBertForSequenceClassification"],
        "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
        "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
        "model_type": "distilbert",
        "pad_token_id": 0,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in _TOKENIZER:
        shutil.copyfile(TINY / name, folder / name)
    save_file(_random(shape, seed), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def tensors(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a DistilBERT with a classification head."""
    dim, hidden = shape.dim, shape.hidden_dim
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (shape.vocab_size, dim),
        "embeddings.position_embeddings.weight": (shape.max_position_embeddings, dim),
        **_pair("embeddings.LayerNorm", (dim,)),
    }
    for index in range(shape.n_layers):
        layer = f"transformer.layer.{index}"
        for part in ("q_lin", "k_lin", "v_lin", "out_lin"):
            found |= _pair(f"{layer}.attention.{part}", (dim, dim))
        found |= _pair(f"{layer}.ffn.lin1", (hidden, dim)) | _pair(f"{layer}.ffn.lin2", (dim, hidden))
        found |= _pair(f"{layer}.sa_layer_norm", (dim,)) | _pair(f"{layer}.output_layer_norm", (dim,))
    found = {f"distilbert.{name}": size for name, size in found.items()}
    return found | _pair("pre_classifier", (dim, dim)) | _pair("classifier", (2, dim))


def _pair(name: str, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _random(shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, size in tensors(shape).items():
        # Wide enough that two texts have different vectors, and no more than trained weights have.
        spread = 0.05 if name.endswith("weight") else 0.01
        found[name] = torch.empty(size).normal_(0, spread, generator=generator)
        if "norm" in name.lower() and name.endswith("weight"):
            found[name] += 1
    return found
