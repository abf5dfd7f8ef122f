"""A checkpoint folder: its configuration, verified before any weight is loaded."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import index
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .location import locate
from .sentence import SentenceSettings, read_sentence_settings
from .tokenizer import tokenizer_files

__all__ = ["Checkpoint", "ModelConfig"]

_MAX_HEADER = 16 * 1024 * 1024
_DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
_FLOATS = {"F32", "F16", "BF16", "F64"}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a DistilBERT, named as in its config.json."""

    vocab_size: int
    max_position_embeddings: int
    dim: int
    n_layers: int
    n_heads: int
    hidden_dim: int
    activation: str

    @classmethod
    def parse(cls, config: Mapping[str, Any], path: Path) -> ModelConfig:
        model_type = config.get("model_type")
        if model_type != "distilbert":
            raise CheckpointError(
                f"{path} describes a model of type {model_type!r}; distilbeam runs 'distilbert' models"
            )
        if "auto_map" in config:
            raise CheckpointError(
                f"{path} asks for code of its own (auto_map); distilbeam never runs code from a checkpoint"
            )
        defaults = {
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "dim": 768,
            "n_layers": 6,
            "n_heads": 12,
            "hidden_dim": 3072,
        }
        sizes = {name: config.get(name, default) for name, default in defaults.items()}
        for name, value in sizes.items():
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 10_000_000:
                raise CheckpointError(f"{path}: {name} is {value!r}; it must be a positive integer")
        if sizes["dim"] % sizes["n_heads"]:
            raise CheckpointError(f"{path}: dim {sizes['dim']} is not a multiple of n_heads {sizes['n_heads']}")
        activation = config.get("activation", "gelu")
        if activation not in ("gelu", "relu"):
            raise CheckpointError(f"{path}: activation is {activation!r}; DistilBERT has 'gelu' or 'relu'")
        return cls(activation=activation, **sizes)

    def encoder_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the encoder, without the ``distilbert.`` prefix."""
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word_embeddings.weight": (self.vocab_size, self.dim),
            "embeddings.position_embeddings.weight": (self.max_position_embeddings, self.dim),
            "embeddings.LayerNorm.weight": (self.dim,),
            "embeddings.LayerNorm.bias": (self.dim,),
        }
        for number in range(self.n_layers):
            layer = f"transformer.layer.{number}"
            for name in ("q_lin", "k_lin", "v_lin", "out_lin"):
                shapes[f"{layer}.attention.{name}.weight"] = (self.dim, self.dim)
                shapes[f"{layer}.attention.{name}.bias"] = (self.dim,)
            shapes[f"{layer}.ffn.lin1.weight"] = (self.hidden_dim, self.dim)
            shapes[f"{layer}.ffn.lin1.bias"] = (self.hidden_dim,)
            shapes[f"{layer}.ffn.lin2.weight"] = (self.dim, self.hidden_dim)
            shapes[f"{layer}.ffn.lin2.bias"] = (self.dim,)
            for norm in ("sa_layer_norm", "output_layer_norm"):
                shapes[f"{layer}.{norm}.weight"] = (self.dim,)
                shapes[f"{layer}.{norm}.bias"] = (self.dim,)
        return shapes


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint on this machine.

    Attributes:
        folder: where it lies.
        name: the model as the user named it.
        id: the same without the revision.
        revision: commit of a Hub model; None elsewhere.
        config: the shape of the encoder.
        prefix: what stands before the encoder's tensor names, ``distilbert.`` or nothing.
        labels: names of the classes by index; empty without a classification head.
        multi_label: whether classes are independent (sigmoid) rather than exclusive (softmax).
        sentence: pooling, normalization and length of a sentence-transformers folder.
        max_length: tokens the model sees of a text at most, special tokens included.
    """

    folder: Path
    name: str
    id: str
    revision: str | None
    config: ModelConfig
    prefix: str
    labels: tuple[str, ...]
    multi_label: bool
    sentence: SentenceSettings
    max_length: int

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Find a checkpoint, bring it to this machine and verify it without loading weights.

        Args:
            model: a folder, an fsspec URL of a folder, or a Hub id, best with a commit: ``name@<commit>``.

        Raises:
            CheckpointError: it cannot be found, is unsafe, damaged, or not a DistilBERT.
        """
        location = locate(model)
        sentence = read_sentence_settings(location.folder)
        folder = location.folder / sentence.transformer
        path = folder / "config.json"
        config = _read_json(path)
        shape = ModelConfig.parse(config, path)
        tensors = read_header(weights_file(folder))
        prefix = "distilbert." if any(name.startswith("distilbert.") for name in tensors) else ""
        _verify(tensors, {prefix + name: dims for name, dims in shape.encoder_shapes().items()}, folder)
        tokenizer_files(folder)
        labels = _labels(config, tensors, shape, folder)
        return cls(
            folder=folder,
            name=model,
            id=location.id,
            revision=location.revision,
            config=shape,
            prefix=prefix,
            labels=labels,
            multi_label=config.get("problem_type") == "multi_label_classification",
            sentence=sentence,
            max_length=_max_length(folder, sentence, shape),
        )

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of model.safetensors."""
        return _sha256(weights_file(self.folder))

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 over the files that determine the tokenizer."""
        return _sha256(*tokenizer_files(self.folder))


def weights_file(folder: Path) -> Path:
    """``model.safetensors`` of a folder; anything else, pickle above all, is refused."""
    path = folder / "model.safetensors"
    if path.is_file():
        return path
    if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{folder} holds its weights only as pickle, which can run code when loaded; "
            "convert them to model.safetensors (save_pretrained of transformers does) on a machine you can lose"
        )
    raise CheckpointError(f"{folder} has no model.safetensors")


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Dtype and shape of every tensor, after checking that the file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise CheckpointError(f"{path} is not a whole safetensors file; copy it again")
        try:
            header = json.loads(file.read(length))
            tensors = {
                name: (str(entry["dtype"]), _sizes(entry["shape"]), _sizes(entry["data_offsets"]))
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise CheckpointError(f"{path} has a damaged safetensors header; copy it again") from None
    data = size - 8 - length
    end = 0
    for name, (dtype, shape, offsets) in sorted(tensors.items(), key=lambda item: item[1][2]):
        count = 1
        for dimension in shape:
            count *= dimension
        if len(offsets) != 2 or offsets[0] != end or offsets[1] - offsets[0] != count * _DTYPE_BYTES.get(dtype, -1):
            raise CheckpointError(
                f"{path}: tensor {name} does not fill the bytes its header gives it; copy the file again"
            )
        end = offsets[1]
    if end != data:
        raise CheckpointError(f"{path} has {data} bytes of tensors where its header promises {end}; copy it again")
    return {name: (dtype, shape) for name, (dtype, shape, _) in tensors.items()}


def _sizes(values: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(map(index, values))
    if any(size < 0 for size in sizes):
        raise ValueError
    return sizes


def _verify(
    tensors: Mapping[str, tuple[str, tuple[int, ...]]], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> None:
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(
                f"{folder}/model.safetensors lacks the tensor {name}, so it is not a DistilBERT as its config.json says"
            )
        dtype, found = tensors[name]
        if found != shape or dtype not in _FLOATS:
            raise CheckpointError(
                f"{folder}/model.safetensors: {name} is {dtype}{list(found)}, "
                f"config.json asks for floats of shape {list(shape)}"
            )


def _labels(
    config: Mapping[str, Any], tensors: Mapping[str, tuple[str, tuple[int, ...]]], shape: ModelConfig, folder: Path
) -> tuple[str, ...]:
    """Class names of a sequence classification head; empty where there is none."""
    if "pre_classifier.weight" not in tensors or "classifier.weight" not in tensors:
        return ()
    if config.get("problem_type") == "regression":
        return ()  # its outputs are values, not classes
    classes = tensors["classifier.weight"][1][0]
    head = {
        "pre_classifier.weight": (shape.dim, shape.dim),
        "pre_classifier.bias": (shape.dim,),
        "classifier.weight": (classes, shape.dim),
        "classifier.bias": (classes,),
    }
    _verify(tensors, head, folder)
    names = config.get("id2label")
    if names is None:
        return tuple(f"LABEL_{number}" for number in range(classes))
    try:
        by_index = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError, TypeError):
        raise CheckpointError(f"{folder}/config.json: id2label is not a map from class index to name") from None
    labels = tuple(by_index.get(number, "") for number in range(classes))
    if len(by_index) != classes or "" in labels or len(set(labels)) != classes:
        raise CheckpointError(
            f"{folder}/config.json does not name each of the classifier's {classes} classes once: "
            f"id2label has {sorted(by_index)}, {len(set(by_index.values()))} different names"
        )
    return labels


def _max_length(folder: Path, sentence: SentenceSettings, shape: ModelConfig) -> int:
    limit = sentence.max_length
    if limit is None and (folder / "tokenizer_config.json").is_file():
        limit = _read_json(folder / "tokenizer_config.json").get("model_max_length")
    # Tokenizers saved without a limit carry a huge float.
    if not isinstance(limit, int | float) or limit < 3:
        return shape.max_position_embeddings
    return int(min(limit, shape.max_position_embeddings))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}; give the folder of a DistilBERT checkpoint") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def _sha256(*paths: Path) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
