"""Apache Beam's own RunInference, with a handler as a user would write one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import numpy.typing as npt
import torch
from apache_beam.ml.inference.base import ModelHandler, RunInference
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.util import SortAndBatchElements

from . import Embedder, Setup
from .hugging_face import load_model, load_tokenizer, mean_pool

__all__ = ["best", "default"]


class _Loaded:
    """Encoder and tokenizer; no tuple, to which Beam cannot hold a weak reference."""

    def __init__(self, setup: Setup) -> None:
        self.encoder = load_model(setup)
        self.tokenizer = load_tokenizer(setup)


# What is read and written lies in this process, where FnApiRunner runs the job: neither is part of what is timed.
_TEXTS: list[str] = []
_VECTORS: dict[int, npt.NDArray[np.float32]] = {}
_LOADED: dict[Setup, _Loaded] = {}


def default(setup: Setup) -> Embedder:
    """A handler that tokenizes and pads the batches Beam makes by itself, in the order the texts come."""

    def steps(texts: Any) -> Any:
        return texts | RunInference(_Handler(setup))

    return _embedder(setup, steps)


def best(setup: Setup) -> Embedder:
    """Tokenized first, sorted by tokens, batched by their sum, and Beam's own batching left out."""

    def steps(texts: Any) -> Any:
        return (
            texts
            | beam.Map(_tokenize, setup)
            | SortAndBatchElements(
                min_batch_size=1, max_batch_size=1024, max_batch_weight=setup.token_budget, element_size_fn=_size
            )
            | RunInference(_Handler(setup).with_no_batching())
        )

    return _embedder(setup, steps)


def _embedder(setup: Setup, steps: Callable[[Any], Any]) -> Embedder:
    _load(setup)

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        _TEXTS[:] = texts
        _VECTORS.clear()
        with beam.Pipeline(runner=FnApiRunner()) as pipeline:
            _ = steps(pipeline | beam.Create([None]) | beam.FlatMap(_read)) | beam.Map(_keep)
        return np.stack([_VECTORS[position] for position in range(len(texts))])

    return embed


class _Handler(ModelHandler[tuple[int, Any], tuple[int, npt.NDArray[np.float32]], _Loaded]):
    """(position, text or token ids) to (position, vector)."""

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._setup = setup

    def load_model(self) -> _Loaded:
        return _load(self._setup)

    def run_inference(
        self, batch: Sequence[tuple[int, Any]], model: _Loaded, inference_args: dict[str, Any] | None = None
    ) -> Iterable[tuple[int, npt.NDArray[np.float32]]]:
        examples = [example for _, example in batch]
        if isinstance(examples[0], str):
            padded = model.tokenizer(
                examples, padding=True, truncation=True, max_length=self._setup.max_length, return_tensors="pt"
            )
        else:
            padded = model.tokenizer.pad({"input_ids": examples}, return_tensors="pt")
        ids, mask = padded["input_ids"].to(self._setup.device), padded["attention_mask"].to(self._setup.device)
        with torch.inference_mode():
            hidden = model.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
            vectors = mean_pool(hidden, mask).cpu().numpy()
        return [(position, vector) for (position, _), vector in zip(batch, vectors, strict=True)]


def _load(setup: Setup) -> _Loaded:
    """Once for all runs, so that no loading is timed."""
    if setup not in _LOADED:
        _LOADED[setup] = _Loaded(setup)
    return _LOADED[setup]


def _read(_: None) -> list[tuple[int, str]]:
    return list(enumerate(_TEXTS))


def _tokenize(element: tuple[int, str], setup: Setup) -> tuple[int, list[int]]:
    position, text = element
    ids: list[int] = _load(setup).tokenizer(text, truncation=True, max_length=setup.max_length)["input_ids"]
    return position, ids


def _size(element: tuple[int, list[int]]) -> int:
    return len(element[1])


def _keep(element: tuple[int, npt.NDArray[np.float32]]) -> None:
    _VECTORS[element[0]] = element[1]
