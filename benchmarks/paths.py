"""Our three paths, through what users call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from distilbeam.pipelines import embed
from distilbeam.transforms import Encoder

from .checkpoint import read_shape
from .corpus import Corpus, save
from .flops import row_flops

__all__ = ["FORWARD", "IN_THREADS", "STORED", "VECTORS", "Paths"]

FORWARD = "forward only"
VECTORS = "text -> vectors"
STORED = "stored text -> stored features"
IN_THREADS = f"{STORED}, in 4 threads"


class Paths:
    """One corpus through one checkpoint: how much work that is, and three ways to do it.

    Attributes:
        encoder: the loaded checkpoint.
        tokens: tokens of all rows as the model sees them, special tokens included and padding not.
        flops: what these cost.
    """

    def __init__(self, model: Path, corpus: Corpus, folder: Path, **compute: Any) -> None:
        """Load the model, tokenize the corpus and store it.

        Args:
            folder: where the corpus and the features are written.
            compute: ``device``, ``dtype``, ``threads`` and ``token_budget`` of ``Encoder.load``.
        """
        self._model, self._corpus, self._folder, self._compute = str(model), corpus, folder, compute
        self._written = 0
        self.encoder = Encoder.load(self._model, **compute)
        self._tokens = self.encoder.tokenize(corpus.texts)
        self._stored = save(corpus.texts, folder / "input" / "texts.parquet")
        self.tokens = int(self._tokens.lengths.sum())
        self.flops = row_flops(self._tokens.lengths, read_shape(model))

    @property
    def dtype(self) -> str:
        """What the model computes in, which ``auto`` has become."""
        return self.encoder.engine.compute.dtype

    def works(self) -> dict[str, Callable[[], object]]:
        """The paths by name; on a GPU with threads that read, tokenize and write beside it."""
        works: dict[str, Callable[[], object]] = {FORWARD: self.forward, VECTORS: self.vectors, STORED: self.stored}
        if self.encoder.engine.compute.device != "cpu":
            works[IN_THREADS] = self.stored_in_threads
        return works

    def forward(self) -> None:
        """Token ids, made before, to vectors: what the model itself takes."""
        result = self.encoder.engine.run(self._tokens, ("mean",))
        if result.failed:
            raise RuntimeError(f"{len(result.failed)} of {len(self._corpus)} rows failed in the model")

    def vectors(self) -> Any:
        """Strings to vectors in memory, float32[rows, dim]: with the tokenizer."""
        return self.encoder.embed(self._corpus.texts)

    def stored(self) -> None:
        """A Parquet file to a committed output, as the command ``distilbeam embed`` does it: with Beam and the disk."""
        self._embed()

    def stored_in_threads(self) -> None:
        """The same with four threads, each with splits of its own."""
        threads = ["--direct_running_mode=multi_threading", "--direct_num_workers=4"]
        self._embed(beam_options=threads, split_bytes=max(1, self._stored.stat().st_size // 8))

    def _embed(self, **settings: Any) -> None:
        self._written += 1
        output = self._folder / f"output-{id(self)}-{self._written}"
        settings = {"input": str(self._stored), "output": str(output), "keep": ["id"], **self._compute, **settings}
        summary = embed(self._model, **settings)
        if summary is None or summary.rows != len(self._corpus):
            raise RuntimeError(f"{len(self._corpus)} rows were stored, and the output is {summary}")
