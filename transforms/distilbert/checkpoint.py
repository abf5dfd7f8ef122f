"""A checkpoint folder: its configuration, verified before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from distilbeam.transforms.errors import CheckpointError

from .files import is_there, plain, read_json, shown
from .header import Tensors, WeightsFile
from .location import locate
from .sentence import SentenceSettings, read_sentence_settings
from .sharded import ShardedWeights, find_weights
from .tokenizer import TokenizerFiles, check_tokenizer_config
from .unheeded import check_settings, unheeded

__all__ = ["Checkpoint", "ModelConfig"]

_FLOATS = {"F32", "F16", "BF16", "F64"}
# Default, least and most. The bounds only keep absurd numbers from being worked with; the weights decide.
_SIZES = {
    "vocab_size": (30_522, 1, 10_000_000),
    "max_position_embeddings": (512, 3, 1_000_000),
    "dim": (768, 1, 65_536),
    "n_layers": (6, 1, 1_000),
    "n_heads": (12, 1, 65_536),
    "hidden_dim": (3_072, 1, 1_000_000),
}
# As transformers takes them too.
_OTHER_NAMES = {"hidden_size": "dim", "num_attention_heads": "n_heads", "num_hidden_layers": "n_layers"}
_CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
_PROBLEMS = (None, "regression", "single_label_classification", "multi_label_classification")
# Of the encoder, but no weights: old checkpoints carry the numbers of their positions.
_BUFFERS = {"embeddings.position_ids"}


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
                f"{shown(path)} describes a model of type {shown(model_type)}; distilbeam runs 'distilbert' models"
            )
        _check_no_code(config, path)
        sizes = {name: config.get(name, default) for name, (default, _, _) in _SIZES.items()}
        for other, name in _OTHER_NAMES.items():
            if other in config:
                if config.get(name, config[other]) != config[other]:
                    raise CheckpointError(
                        f"{shown(path)}: {name} is {shown(config[name])} and {other}, another name of it, "
                        f"{shown(config[other])}; take the wrong one out"
                    )
                sizes[name] = config[other]
        for name, value in sizes.items():
            _, least, most = _SIZES[name]
            if type(value) is not int or not least <= value <= most:
                raise CheckpointError(
                    f"{shown(path)}: {name} is {shown(value)}; it must be a whole number from {least} to {most:,}"
                )
        if sizes["dim"] % sizes["n_heads"]:
            raise CheckpointError(f"{shown(path)}: dim {sizes['dim']} is not a multiple of n_heads {sizes['n_heads']}")
        activation = config.get("activation", "gelu")
        if activation not in ("gelu", "relu"):
            raise CheckpointError(f"{shown(path)}: activation is {shown(activation)}; DistilBERT has 'gelu' or 'relu'")
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
        regression: whether the outputs of the classification head are values, not classes.
        weights: model.safetensors, or the files of its index, as they were when they were verified.
        tokenizer_sha256: SHA-256 over the files that determine the tokenizer.
        unheeded: a sentence for each place with settings or files that are neither heeded nor known to change nothing.
    """

    folder: Path
    name: str
    id: str
    revision: str | None
    config: ModelConfig
    prefix: str
    labels: tuple[str, ...]
    multi_label: bool
    regression: bool
    sentence: SentenceSettings
    max_length: int
    weights: WeightsFile | ShardedWeights
    tokenizer_sha256: str
    unheeded: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def open(cls, model: str, sha256: str | None = None) -> Checkpoint:
        """Find a checkpoint, bring it to this machine and verify it without loading weights.

        Args:
            model: a folder, an fsspec URL of a folder, or a Hub id, best with a commit: ``name@<commit>``.
            sha256: what ``weights_sha256`` must be, in hexadecimal; None for anything.

        Raises:
            CheckpointError: it cannot be found, is unsafe, damaged, not a DistilBERT, or not the one that is pinned.
        """
        location = locate(model)
        sentence = read_sentence_settings(location.folder)
        folder = location.folder / sentence.transformer
        path = folder / "config.json"
        config = read_json(path)
        shape = ModelConfig.parse(config, path)
        check_settings(location.folder, folder, config)
        weights = find_weights(folder)
        if sha256 is not None:
            _check_pin(weights, sha256)
        tensors = weights.header()
        prefix = "distilbert." if any(name.startswith("distilbert.") for name in tensors) else ""
        shapes = {prefix + name: dims for name, dims in shape.encoder_shapes().items()}
        _verify(tensors, shapes, weights.path)
        _verify_nothing_else(tensors, shapes, prefix, weights.path)
        tokenizer = TokenizerFiles.read(folder)
        check_tokenizer_config(folder)
        labels = _labels(config, tensors, shape, weights.path)
        return cls(
            folder=folder,
            name=model,
            id=location.id,
            revision=location.revision,
            config=shape,
            prefix=prefix,
            labels=labels,
            multi_label=config.get("problem_type") == "multi_label_classification",
            regression=config.get("problem_type") == "regression",
            sentence=sentence,
            max_length=_max_length(folder, sentence, shape),
            weights=weights,
            tokenizer_sha256=tokenizer.sha256,
            unheeded=unheeded(location.folder, folder),
        )

    def dimensions(self, pooling: str | None = None) -> int:
        """Length of its vectors, pooled as set or, for None, as published."""
        poolings = 1 if pooling else len(self.sentence.pooling.split("+"))
        whole = poolings * self.config.dim
        return min(whole, self.sentence.dimensions or whole)

    @property
    def scores_by(self) -> str:
        """What makes scores of the head's outputs, as in transformers' pipeline: softmax, sigmoid, or identity."""
        if self.regression:
            return "identity"
        return "sigmoid" if self.multi_label or len(self.labels) == 1 else "softmax"

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of model.safetensors, the one that is loaded; of several files as in ``ShardedWeights.sha256``.

        Raises:
            CheckpointError: the file has changed since it was verified.
        """
        return self.weights.sha256()


def _check_no_code(config: Mapping[str, Any], path: Path) -> None:
    for key in _CODE_KEYS:
        if config.get(key):
            raise CheckpointError(
                f"{shown(path)} asks for code of its own ({key}); distilbeam never runs code from a checkpoint: "
                "take a plain DistilBERT, or save this one as such"
            )
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list) or not all(
        isinstance(name, str) and name.startswith("DistilBert") for name in architectures
    ):
        raise CheckpointError(
            f"{shown(path)} names an architecture of its own, {shown(architectures)}; distilbeam runs DistilBert "
            "classes and never code from a checkpoint: if its weights are a plain DistilBERT, say DistilBertModel there"
        )


def _check_pin(weights: WeightsFile | ShardedWeights, sha256: str) -> None:
    found = weights.sha256()
    if found != sha256.lower():
        single = isinstance(weights, WeightsFile)
        what = f"{shown(weights.path)} has" if single else f"the lines of sha256sum for {shown(weights.path)} have"
        raise CheckpointError(
            f"{what} the SHA-256 {found}, but `model_sha256` pins {sha256.lower()}; take the model "
            "that is meant, or pin this one if you trust it"
        )


def _verify(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], path: Path) -> None:
    file = shown(path)
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"{file} lacks the tensor {name}, so it is not a DistilBERT as its config.json says")
        dtype, found = tensors[name]
        if found != shape or dtype not in _FLOATS:
            raise CheckpointError(
                f"{file}: {name} is {dtype}{list(found)}, config.json asks for floats of shape {list(shape)}"
            )


def _verify_nothing_else(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]], prefix: str, path: Path) -> None:
    """Refuse an encoder with more than a DistilBERT's tensors, such as adapters: without them it is another model."""
    parts = (prefix + "embeddings.", prefix + "transformer.")
    for name in tensors:
        if name.startswith(parts) and name not in shapes and name.removeprefix(prefix) not in _BUFFERS:
            raise CheckpointError(
                f"{shown(path)} has the tensor {plain(name)}, which a DistilBERT as its "
                "config.json says does not have; save the model without it, adapters merged into the weights"
            )


def _labels(config: Mapping[str, Any], tensors: Tensors, shape: ModelConfig, weights: Path) -> tuple[str, ...]:
    """Names of the outputs of a sequence classification head; empty where there is none."""
    if "pre_classifier.weight" not in tensors or "classifier.weight" not in tensors:
        return ()
    path = shown(weights.parent / "config.json")
    classes = (*tensors["classifier.weight"][1], 0)[0]
    head = {
        "pre_classifier.weight": (shape.dim, shape.dim),
        "pre_classifier.bias": (shape.dim,),
        "classifier.weight": (classes, shape.dim),
        "classifier.bias": (classes,),
    }
    _verify(tensors, head, weights)
    problem = config.get("problem_type")
    if problem not in _PROBLEMS or (classes == 1 and problem == "single_label_classification"):
        raise CheckpointError(
            f"{path}: problem_type is {shown(problem)} with {classes} outputs; it must be one of "
            f"{', '.join(_PROBLEMS[1:])}, and of one output it cannot be single_label_classification"
        )
    names = config.get("id2label")
    if names is None:
        return tuple(f"LABEL_{number}" for number in range(classes))
    try:
        by_index = {int(number): str(name) for number, name in names.items()}
    except (AttributeError, ValueError, TypeError):
        raise CheckpointError(f"{path}: id2label is not a map from class index to name") from None
    labels = tuple(by_index.get(number, "") for number in range(classes))
    if len(by_index) != classes or "" in labels or len(set(labels)) != classes:
        raise CheckpointError(
            f"{path} does not name each of the classifier's {classes} classes once: "
            f"id2label has {shown(sorted(by_index))}, {len(set(by_index.values()))} different names"
        )
    return labels


def _max_length(folder: Path, sentence: SentenceSettings, shape: ModelConfig) -> int:
    limit = sentence.max_length
    if limit is None and is_there(folder / "tokenizer_config.json"):
        settings = read_json(folder / "tokenizer_config.json")
        limit = settings.get("model_max_length", settings.get("max_len"))
    # Tokenizers saved without a limit carry a huge float.
    if not isinstance(limit, int | float) or math.isnan(limit) or limit < 3:
        return shape.max_position_embeddings
    return int(min(limit, shape.max_position_embeddings))
