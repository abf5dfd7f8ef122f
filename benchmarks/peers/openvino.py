"""OpenVINO with nothing in between: rows sorted by length, cut by a token budget, one padded pass for each part."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from . import Embedder, Setup, padded_batches
from .hugging_face import load_model, load_tokenizer, mean_pool

__all__ = ["embedder"]

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "int8": "bf16"}
_CALIBRATION = 32  # rows


class _Pooled(nn.Module):
    """The encoder and its mean, as one graph."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return mean_pool(self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0], attention_mask)


def embedder(setup: Setup) -> Embedder:
    """The compiled model; ``int8`` quantizes weights and activations by calibration on generated texts.

    Raises:
        RuntimeError: OpenVINO does not compute in the dtype on this machine.
    """
    import openvino

    tokenizer = load_tokenizer(setup)
    graph = _convert(setup)
    if setup.dtype == "int8":
        graph = _quantize(graph, tokenizer, setup)
    core = openvino.Core()
    abilities = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    precision = _PRECISIONS[setup.dtype]
    if setup.dtype == "bfloat16" and "BF16" not in abilities:
        raise RuntimeError(f"no bfloat16 on this CPU, which has {', '.join(abilities)}")
    if "BF16" not in abilities:
        precision = "f32"
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = core.compile_model(graph, "CPU", hints)

    def embed(texts: list[str]) -> npt.NDArray[np.float32]:
        rows = tokenizer(texts, truncation=True, max_length=setup.max_length)["input_ids"]
        vectors: npt.NDArray[np.float32] | None = None
        for batch in padded_batches([len(row) for row in rows], setup.token_budget):
            found = compiled(_pad([rows[position] for position in batch]))[0]
            if vectors is None:
                vectors = np.empty((len(rows), found.shape[1]), dtype=np.float32)
            vectors[batch] = found
        assert vectors is not None, "there are no texts"
        return vectors

    return embed


def _convert(setup: Setup) -> Any:
    import openvino

    model = _Pooled(load_model(replace(setup, dtype="float32"))).eval()
    ids = torch.randint(1000, 2000, (2, 8))
    # By export: what transformers does with masks cannot be traced.
    rows, length = torch.export.Dim("rows", min=1, max=65_536), torch.export.Dim("length", min=2, max=setup.max_length)
    sizes = ({0: rows, 1: length}, {0: rows, 1: length})
    with torch.no_grad():
        graph: Any = openvino.convert_model(
            torch.export.export(model, (ids, torch.ones_like(ids)), dynamic_shapes=sizes)
        )
    return graph


def _quantize(graph: Any, tokenizer: Any, setup: Setup) -> Any:
    import nncf

    from ..corpus import draw_lengths, generate

    nncf.set_log_level(40)
    generator = np.random.default_rng(1)
    texts = generate(draw_lengths(_CALIBRATION, generator), generator)
    rows = tokenizer(texts, truncation=True, max_length=setup.max_length)["input_ids"]
    data = nncf.Dataset([_pad([row]) for row in rows])
    with redirect_stdout(sys.stderr):  # its progress
        return nncf.quantize(graph, data, subset_size=_CALIBRATION, model_type=nncf.ModelType.TRANSFORMER)


def _pad(rows: list[list[int]]) -> list[npt.NDArray[np.int64]]:
    """Token ids to what the graph takes, ids and mask, int64[rows, longest] each; the padding is token 0, masked."""
    ids = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    mask = np.zeros_like(ids)
    for position, row in enumerate(rows):
        ids[position, : len(row)] = row
        mask[position, : len(row)] = 1
    return [ids, mask]
