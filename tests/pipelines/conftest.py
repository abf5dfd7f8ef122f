"""A tiny random checkpoint, written without torch, and a corpus with a few bad rows."""

import json
import string
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

DIM, LAYERS, HIDDEN, POSITIONS = 16, 1, 32, 64
VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *string.ascii_lowercase,
    *("##" + c for c in string.ascii_lowercase),
]


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)

    def matrix(*shape: int) -> np.ndarray:
        return random.normal(0, 0.5, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": matrix(len(VOCABULARY), DIM),
        "embeddings.position_embeddings.weight": matrix(POSITIONS, DIM),
        "embeddings.LayerNorm.weight": np.ones(DIM, np.float32),
        "embeddings.LayerNorm.bias": np.zeros(DIM, np.float32),
    }
    for layer in range(LAYERS):
        name = f"transformer.layer.{layer}"
        sizes = dict.fromkeys((f"attention.{part}_lin" for part in ("q", "k", "v", "out")), (DIM, DIM))
        sizes |= {"ffn.lin1": (HIDDEN, DIM), "ffn.lin2": (DIM, HIDDEN)}
        for part, (rows, columns) in sizes.items():
            tensors[f"{name}.{part}.weight"] = matrix(rows, columns)
            tensors[f"{name}.{part}.bias"] = matrix(rows)
        for norm in ("sa_layer_norm", "output_layer_norm"):
            tensors[f"{name}.{norm}.weight"] = np.ones(DIM, np.float32)
            tensors[f"{name}.{norm}.bias"] = np.zeros(DIM, np.float32)
    tensors = {f"distilbert.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {"pre_classifier.weight": matrix(DIM, DIM), "pre_classifier.bias": matrix(DIM)}
    tensors |= {"classifier.weight": matrix(2, DIM), "classifier.bias": np.zeros(2, np.float32)}
    save_file(tensors, folder / "model.safetensors")
    config = {
        "model_type": "distilbert",
        "vocab_size": len(VOCABULARY),
        "max_position_embeddings": POSITIONS,
        "dim": DIM,
        "n_layers": LAYERS,
        "n_heads": 2,
        "hidden_dim": HIDDEN,
        "id2label": {"0": "NO", "1": "YES"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    """300 rows of 1 to 90 letters, so that some are truncated, and two lines that are not JSON."""
    random = np.random.default_rng(3)
    lines = []
    for number in range(300):
        words = "".join(random.choice([*string.ascii_lowercase, " "], random.integers(1, 90)))
        lines.append(json.dumps({"id": f"r{number}", "review": words, "stars": int(random.integers(1, 6))}))
    lines.insert(40, '{"id": "broken", "review": ')
    lines.insert(200, "PRIVATE words that are no JSON")
    path = tmp_path_factory.mktemp("corpus") / "reviews.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return str(path)
