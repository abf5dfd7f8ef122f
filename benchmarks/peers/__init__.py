"""Other ways to get the same vectors from the same weights, each a function from texts to vectors.

They are imported when they run, so that what is not installed is a row without figures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["PEERS", "Embedder", "Peer", "Setup", "agreement", "missing"]

Embedder = Callable[[list[str]], npt.NDArray[np.float32]]
"""Texts to vectors, float32[texts, dim], in their order."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a peer is to run with.

    Attributes:
        model: folder of the checkpoint.
        device: ``cpu`` or ``cuda[:n]``.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        max_length: tokens of a text at most.
        token_budget: tokens of a micro-batch, padding included, where the peer can be given one.
    """

    model: Path
    device: str
    dtype: str
    max_length: int
    token_budget: int


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer.

    Attributes:
        name: shown in the table.
        source: module and function that loads it.
        dtype: what it computes in.
        needs: modules that must be installed.
        devices: kinds of device it runs on.
        pooling: how it makes a vector of a text.
        agrees: the least cosine with our float32 vectors, by ``agreement``, with which it counts as right.
    """

    name: str
    source: str
    dtype: str
    needs: tuple[str, ...]
    devices: tuple[str, ...] = ("cpu", "cuda")
    pooling: str = "mean"
    agrees: float = 0.99

    def load(self, setup: Setup) -> Embedder:
        """Import it and load the model."""
        module, _, function = self.source.partition(":")
        loaded: Embedder = getattr(import_module(f".{module}", __name__), function)(setup)
        return loaded


def _peers() -> tuple[Peer, ...]:
    fp32, bf16, fp16, int8 = "float32", "bfloat16", "float16", "int8"
    hugging_face, sentences, cpu, cuda = ("transformers",), ("sentence_transformers",), ("cpu",), ("cuda",)
    return (
        Peer("Hugging Face pipeline", "hugging_face:pipeline", fp32, hugging_face, pooling="cls", agrees=0.999),
        Peer("sentence-transformers fp32", "hugging_face:sentences", fp32, sentences, agrees=0.999),
        Peer("sentence-transformers bf16", "hugging_face:sentences", bf16, sentences),
        Peer("sentence-transformers fp16", "hugging_face:sentences", fp16, sentences, cuda),
        Peer(
            "sentence-transformers fp16, flash",
            "hugging_face:sentences_flash",
            fp16,
            (*sentences, "flash_attn"),
            cuda,
        ),
        Peer(
            "sentence-transformers OpenVINO",
            "hugging_face:sentences_openvino",
            fp32,
            (*sentences, "optimum.intel"),
            cpu,
        ),
        Peer("Beam RunInference fp32, default", "beam:default", fp32, hugging_face, agrees=0.999),
        Peer("Beam RunInference fp32, sorted", "beam:best", fp32, hugging_face, agrees=0.999),
        Peer("Beam RunInference bf16, sorted", "beam:best", bf16, hugging_face),
        Peer("OpenVINO fp32, sorted, budget", "openvino:embedder", fp32, ("openvino", *hugging_face), cpu),
        Peer("OpenVINO bf16, sorted, budget", "openvino:embedder", bf16, ("openvino", *hugging_face), cpu),
        Peer(
            "OpenVINO int8, sorted, budget",
            "openvino:embedder",
            int8,
            ("openvino", "nncf", *hugging_face),
            cpu,
            agrees=0.8,
        ),
    )


PEERS = _peers()
"""All peers, the slow ones first."""


def missing(peer: Peer) -> str:
    """The first module that a peer needs and that is not installed; empty if there is none."""
    for name in peer.needs:
        try:
            if find_spec(name) is None:
                return name
        except ModuleNotFoundError:  # of the package it lies in
            return name
    return ""


def agreement(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """The least cosine of a text's two vectors.

    All vectors are brought to unit length and the mean of ours is taken away first: random weights give all texts
    vectors of nearly one direction, of which the cosine alone would call any two equal.

    Args:
        ours: float32[texts, dim], of several different texts.
        theirs: the same texts in the same order.

    Returns:
        -1 to 1; -1 if shapes differ or a number is not finite.
    """
    if ours.shape != theirs.shape or not np.isfinite(theirs).all():
        return -1.0
    mean = _unit(ours).mean(axis=0)
    a, b = _unit(_unit(ours) - mean), _unit(_unit(theirs) - mean)
    return float((a * b).sum(axis=1).min())


def padded_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of rows by length, the longest first, cut so that rows x longest stays within a budget."""
    batches: list[list[int]] = []
    room = 0
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if not room:
            batches.append([])
            room = max(1, budget // max(1, lengths[position]))
        batches[-1].append(position)
        room -= 1
    return batches


def _unit(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    lengths: npt.NDArray[np.float64] = np.linalg.norm(wide, axis=1, keepdims=True)
    unit: npt.NDArray[np.float64] = wide / np.maximum(lengths, 1e-30)
    return unit
