"""The same corpus and weights through others and through us."""

from __future__ import annotations

import logging
import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distilbeam.transforms import Encoder
from distilbeam.transforms.distilbert.engine import GPU_TOKENS

from .checkpoint import read_shape
from .corpus import Corpus
from .machine import describe
from .measure import interleave
from .paths import IN_THREADS, STORED, Paths
from .peers import PEERS, Embedder, Peer, Setup, agreement, missing
from .report import Report, Row
from .roofline import ceilings, figures

__all__ = ["TITLE", "compare"]

TITLE = "text -> vectors in memory"
_CPU_TOKENS = 2048
_SAMPLE = 16  # rows of which the vectors are compared


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    dtype: str
    work: Callable[[], object]
    cosine: float


def compare(
    model: Path, corpus: Corpus, options: Namespace, folder: Path, tell: Callable[[str], object] = print
) -> Report:
    """Load every peer that is here, hold its vectors against ours, then time all in turns.

    Args:
        options: ``dtype`` (a list, of ours), ``device``, ``threads``, ``token_budget``, ``repeats``, ``only``.
        folder: an empty folder for what is written.
        tell: is told what runs.
    """
    machine = describe()
    _hush()
    compute: dict[str, Any] = {
        "device": options.device,
        "threads": options.threads,
        "token_budget": options.token_budget,
    }
    sample = corpus.texts[:_SAMPLE]
    right = Encoder.load(str(model), **compute | {"dtype": "float32"})
    truth = {mode: right.embed(sample, pooling=mode, normalize=False) for mode in ("mean", "cls")}
    entries, found_peers, absent = [], [], []
    for number, dtype in enumerate(options.dtype):
        ours = Paths(model, corpus, folder / f"ours-{number}", dtype=dtype, **compute)
        cosine = agreement(truth["mean"], ours.encoder.embed(sample, pooling="mean", normalize=False))
        entries.append(_Entry(f"distilbeam {ours.dtype}", ours.dtype, ours.vectors, cosine))
        for name, work in ours.works().items():
            if name in (STORED, IN_THREADS):
                entries.append(_Entry(f"distilbeam {ours.dtype}, {name}", ours.dtype, work, cosine))
    device = ours.encoder.engine.compute.device
    for peer in PEERS:
        if options.only and not any(peer.name.startswith(name) for name in options.only):
            continue
        if device.partition(":")[0] not in peer.devices:
            continue
        tell(f"loading {peer.name}")
        budget = GPU_TOKENS if device != "cpu" else _CPU_TOKENS
        setup = Setup(model, device, peer.dtype, right.checkpoint.max_length, budget)
        found = _entry(peer, setup, corpus, truth[peer.pooling])
        if isinstance(found, _Entry):
            found_peers.append(found)
        else:
            absent.append(found)
    entries = [*found_peers, *entries]
    tell("looking for the fastest matrix products")
    title, tops, rows = ceilings(read_shape(model), device)
    rates: dict[str, list[float]] = {dtype: [] for dtype in tops}

    def measure_ceilings() -> None:
        for dtype, one in tops.items():
            rates[dtype].append(one.sample() / 1e12)

    works = {entry.name: entry.work for entry in entries}
    for name, work in works.items():
        tell(f"once, uncounted: {name}")
        work()
    seconds = interleave({"ceilings": measure_ceilings} | works, options.repeats, tell)
    for entry in entries:
        samples = figures(seconds[entry.name], ours.tokens, ours.flops, rates.get(entry.dtype))
        rows.append(Row(TITLE, entry.name, samples, {"cosine": round(entry.cosine, 5)}))
    for dtype, one in tops.items():
        rows.append(Row(title, dtype, {"TFLOP/s": rates[dtype]}, {"call": one.how}))
    settings = {
        "model": model.name,
        "corpus": corpus.kind,
        "rows": len(corpus),
        "tokens": ours.tokens,
        "seed": corpus.seed,
        "repeats": options.repeats,
        "device": device,
        "threads": ours.encoder.engine.compute.threads,
    }
    notes = [
        "Medians (least to most); tokens are those of the texts, special tokens included, padding not.",
        "fraction: of the ceiling of the dtype, measured in the same round.",
        f"cosine: the least with our float32 vectors, over {len(sample)} texts, after the mean of all was taken away.",
        "Models are loaded before what is timed; Beam's pipelines are built anew in it.",
    ]
    order = {TITLE: 0}
    return Report("peers", machine, settings, sorted(rows + absent, key=lambda row: order.get(row.group, 1)), notes)


def _entry(peer: Peer, setup: Setup, corpus: Corpus, truth: Any) -> _Entry | Row:
    """A peer ready to be timed, or the row that tells why it is not."""
    lacking = missing(peer)
    if lacking:
        return Row(TITLE, peer.name, note=f"not installed: {lacking} (pip install --group peers)")
    try:
        embed = peer.load(setup)
        cosine = agreement(truth, embed(corpus.texts[: len(truth)]))
    except Exception as error:  # of any library, of which the others are still to be measured
        line = next(iter(str(error).strip().splitlines()), "")
        return Row(TITLE, peer.name, note=f"does not run here: {type(error).__name__}: {line[:100]}")
    if cosine < peer.agrees:
        return Row(TITLE, peer.name, note=f"wrong vectors, so not timed: cosine {cosine:.4f}, not {peer.agrees}")
    return _Entry(peer.name, peer.dtype, _bound(embed, corpus.texts), cosine)


def _bound(embed: Embedder, texts: list[str]) -> Callable[[], object]:
    return lambda: embed(texts)


def _hush() -> None:
    """Keep back what peers print beside the results."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("apache_beam", "nncf", "optimum", "sentence_transformers", "transformers"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
