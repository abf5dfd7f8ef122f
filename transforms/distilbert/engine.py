"""The model at work: the loop over micro-batches, and what is done when one fails."""

from __future__ import annotations

import gc
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distilbeam.transforms.batching import micro_batches
from distilbeam.transforms.errors import CheckpointError, DistilbeamError
from distilbeam.transforms.halving import find_failing
from distilbeam.transforms.metrics import count
from distilbeam.transforms.tokenization import Tokens
from distilbeam.transforms.watchdog import WATCHDOG

from .attention import choose_attention
from .checkpoint import Checkpoint, ModelConfig
from .compute import Compute, cpu_has_bfloat16
from .encoder import PackedEncoder
from .heads import ClassificationHead
from .lanes import LEAST_OF_A_CORE, in_lanes, share
from .linear import RoundedLinear, exact_linear
from .packed import Packed
from .pooling import pool
from .quantization import TrialLinear, quantize
from .streams import Streams, fetched
from .torch_threads import host_threads, torch_threads
from .weights import Arithmetic, Weights

__all__ = ["GPU_TOKENS", "Engine", "Result"]

GPU_TOKENS = 32_768
"""Tokens of a micro-batch on a GPU, unless a token budget is given."""

_log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# On a GPU: while one micro-batch is computed, the next is prepared and sent, and what the last gave is taken away.
_STREAMS = 2
_LEAST_OF_A_GPU = 4096  # tokens; with fewer its cores are not filled, and Python takes longer than they do
# On CPUs that compute in bfloat16 oneDNN takes tens of milliseconds for every number of tokens that it has not met.
_FILLED_TO = 64

# How allocators put it whose errors have no class of their own.
_OUT_OF_MEMORY = re.compile(
    r"can(no|')t allocate memory|out of memory|bad_alloc|ALLOC_FAILED|could not create a (primitive|memory)", re.I
)


@dataclass(frozen=True, slots=True)
class Result:
    """Outputs in the order of the rows.

    Attributes:
        vectors: float32[rows, dim] by pooling mode.
        scores: float32[rows, classes], or None if not asked.
        failed: error class and sentence for each row that broke the model; its outputs are zeros.
    """

    vectors: dict[str, npt.NDArray[np.float32]]
    scores: npt.NDArray[np.float32] | None
    failed: dict[int, tuple[str, str]]

    def copy(self, rows: npt.NDArray[np.int64], sources: npt.NDArray[np.int64]) -> None:
        """Give some rows what others have, int64[n] each."""
        for outputs in (*self.vectors.values(), self.scores):
            if outputs is not None:
                outputs[rows] = outputs[sources]
        if self.failed:
            pairs = zip(rows.tolist(), sources.tolist(), strict=True)
            self.failed.update({row: self.failed[source] for row, source in pairs if source in self.failed})


@dataclass(frozen=True, slots=True)
class _Work:
    """What is being computed.

    Attributes:
        copies: int64[rows], how many rows have the tokens of each row that is computed.
    """

    tokens: Tokens
    copies: npt.NDArray[np.int64]
    result: Result

    def count_repeats(self, rows: npt.NDArray[np.int64]) -> None:
        """Count the rows that need no pass of their own as if they had had one, without padding."""
        repeats = self.copies[rows] - 1
        if repeats.any():
            tokens = int(repeats @ self.tokens.lengths[rows])
            count(rows=int(repeats.sum()), tokens=tokens, slots=tokens)


def _arithmetic(compute: Compute, device: torch.device, config: ModelConfig) -> Arithmetic:
    """The fastest that is as exact as the dtype."""
    if compute.device != "cpu":
        dtype = _DTYPES[compute.dtype]
        attention = choose_attention(device, dtype, config.n_heads, config.dim)
        return Arithmetic(dtype, dtype, attention=attention)
    has_bfloat16 = cpu_has_bfloat16()
    multiple = _FILLED_TO if has_bfloat16 and compute.dtype != "float32" else 1
    if compute.dtype == "int8":
        hidden = torch.bfloat16 if has_bfloat16 else torch.float32
        return Arithmetic(hidden, torch.float32, partial(TrialLinear, hidden=hidden), multiple=multiple)
    dtype = _DTYPES[compute.dtype]
    in_hardware = dtype == torch.float32 or has_bfloat16
    return Arithmetic(dtype, dtype, exact_linear if in_hardware else RoundedLinear, multiple=multiple)


class _TooLargeError(Exception):
    """The memory is too small for a micro-batch."""


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


class Engine:
    """One loaded model. Safe to call from several threads, which take turns.

    Attributes:
        description: what it computes on and in, as JSON: that of ``compute``, and what was settled while loading.
    """

    def __init__(self, checkpoint: Checkpoint, compute: Compute, token_budget: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.compute = compute
        self.description: dict[str, Any] = asdict(compute)
        on_cpu = compute.device == "cpu"
        self._device = torch.device(compute.device)
        if not on_cpu and self._device.index is None:
            # Once, since other threads may stand on other devices.
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._lanes = compute.threads if on_cpu else _STREAMS
        # Enough tokens to fill the matrix units, few enough to stay in the caches of a CPU.
        self._token_budget = token_budget or (GPU_TOKENS if not on_cpu else 2048 if self._lanes == 1 else 1024)
        self._lowered = False
        self._blamed = False  # whether a row that does not fit even alone was met
        self._fitted = 0  # tokens of the largest micro-batch that came through
        with self._threads(), self._loading():
            arithmetic = _arithmetic(compute, self._device, checkpoint.config)
            self._weights = Weights(checkpoint, self._device, arithmetic)
            self._encoder = PackedEncoder(self._weights, checkpoint.config)
            if compute.dtype == "int8":
                self.description |= quantize(self._encoder, checkpoint.config)
            if not on_cpu:
                self.description["attention"] = arithmetic.attention.__name__
            self._streams = Streams(self._device, self._lanes)
        self._head: ClassificationHead | None = None
        self._lock = threading.Lock()
        _log.info("%s runs on %s in %s with %d threads", checkpoint.id, compute.device, compute.dtype, compute.threads)

    def _threads(self) -> AbstractContextManager[None]:
        return torch_threads(self.compute.threads if self._device.type == "cpu" else host_threads())

    @contextmanager
    def _loading(self) -> Iterator[None]:
        try:
            with torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext():
                yield
        except Exception as error:
            if not _is_out_of_memory(error):
                raise
            raise DistilbeamError(
                f"the memory is too small to load {self.checkpoint.id} on {self.compute.device} in "
                f"{self.compute.dtype}; give the worker more, or take a smaller model"
            ) from error

    def run(self, tokens: Tokens, pooling: Sequence[str] = (), classify: bool = False) -> Result:
        """Run the encoder once over all rows; over rows of equal tokens once for all of them.

        As many micro-batches run at once as a CPU has threads, on a GPU two; where the memory is too small for that,
        one by one from then on. A micro-batch that fails is halved until the rows that fail stand alone. One for which
        the memory is too small also lowers the token budget of all that follow; a row that does not fit even alone
        fails. Where all rows of a micro-batch fail, and so does the smallest possible row, the fault is not the rows',
        and the error is raised.

        Args:
            tokens: rows of at most ``max_position_embeddings`` tokens.
            pooling: ``mean``, ``cls`` and ``max``, as many as wanted.
            classify: whether to run the classification head.
        """
        rows = len(tokens)
        dim = self.checkpoint.config.dim
        result = Result(
            vectors={mode: np.zeros((rows, dim), dtype=np.float32) for mode in pooling},
            scores=np.zeros((rows, len(self.checkpoint.labels)), dtype=np.float32) if classify else None,
            failed={},
        )
        first = tokens.first_equal()
        distinct = np.arange(rows, dtype=np.int64)
        work = _Work(tokens, np.ones(rows, dtype=np.int64), result)
        if first is not None:
            work = replace(work, copies=np.bincount(first, minlength=rows))
            repeats, distinct = np.flatnonzero(first != distinct), distinct[first == distinct]
        with WATCHDOG.holding(self._lock), self._threads(), torch.inference_mode():
            if classify:
                # Before the loop, where a failure would count against the rows.
                self._classifier()
            pending, lanes = self._divided(tokens.lengths, distinct), self._lanes
            threads = torch.get_num_threads()
            while pending:
                try:
                    in_lanes(pending, partial(self._run_or_halve, work), self._lanes, threads)
                except _TooLargeError:
                    if self._lanes > 1:
                        _log.warning("out of memory on %s: passes run one by one from here on", self.compute.device)
                        self._lanes = 1
                    pending = self._divided(tokens.lengths, np.concatenate(list(pending)))
            if self._blamed:
                # There may well be memory for several passes without that row.
                self._lanes, self._blamed = lanes, False
        if first is not None:
            result.copy(repeats, first[repeats])
        return result

    def _divided(self, lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> deque[npt.NDArray[np.int64]]:
        """Some rows as micro-batches; int64[n] each, their positions."""
        lengths = lengths[rows]
        least = LEAST_OF_A_CORE if self._device.type == "cpu" else _LEAST_OF_A_GPU
        budget = share(lengths, self._token_budget, self._lanes, least)
        return deque(rows[part] for part in micro_batches(lengths, budget))

    def _run_or_halve(self, work: _Work, batch: npt.NDArray[np.int64]) -> None:
        def attempt(rows: npt.NDArray[np.int64]) -> tuple[str, str] | None:
            failure = self._attempt(work, rows)
            if failure is not None and len(rows) == len(batch) > 1:
                _log.warning("a micro-batch of %d rows failed with %s and is halved", len(batch), failure[0])
            return failure

        failed = find_failing(batch, attempt)
        if len(failed) == len(batch):
            self._probe(work, int(batch[0]))
        work.result.failed.update(failed)

    def _attempt(self, work: _Work, rows: npt.NDArray[np.int64]) -> tuple[str, str] | None:
        """Runs some rows, or says why they cannot be run.

        Raises:
            _TooLargeError: the memory is too small for them beside other lanes; or together, and the token budget was
                lowered.
        """
        for again in (True, False):
            WATCHDOG.beat()
            try:
                self._run_batch(work.tokens, rows, work.result)
                work.count_repeats(rows)
                return None
            except Exception as error:
                failure = type(error).__name__
                out_of_memory = _is_out_of_memory(error)
            # Outside the handler, so that the failed attempt's tensors are free.
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
            if not out_of_memory:
                return failure, "the model failed on this row alone"
            if self._lanes > 1:
                raise _TooLargeError
            if len(rows) > 1:
                self._lower_budget(int(work.tokens.lengths[rows].sum()) // 2)
                raise _TooLargeError
            if again:
                gc.collect()
        # What has fit before fits again: this row is to blame, and no other has to pay for it.
        self._token_budget = max(self._token_budget, self._fitted)
        self._blamed = True
        return "OutOfMemory", "the memory is too small for this row alone"

    def _lower_budget(self, budget: int) -> None:
        # Once as a warning: what follows on it says nothing new.
        level = logging.INFO if self._lowered else logging.WARNING
        self._lowered = True
        self._token_budget = max(1, min(self._token_budget - 1, budget))
        _log.log(
            level,
            "out of memory on %s: from here on at most %d tokens go into a micro-batch; set "
            "`token_budget` to avoid this",
            self.compute.device,
            self._token_budget,
        )

    def _probe(self, work: _Work, row: int) -> None:
        """Run the special tokens of a row alone, which fails only where the device or the model is broken."""
        tokens, result = work.tokens, work.result
        start, stop = tokens.offsets[row], tokens.offsets[row + 1]
        ids = tokens.ids[[start, stop - 1]]
        self._compute(ids, np.array([len(ids)]), tuple(result.vectors), classify=result.scores is not None)

    def _run_batch(self, tokens: Tokens, batch: npt.NDArray[np.int64], result: Result) -> None:
        lengths = tokens.lengths[batch]
        starts = tokens.offsets[batch]
        ids = np.concatenate(
            [tokens.ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        )
        vectors, scores = self._compute(ids, lengths, tuple(result.vectors), classify=result.scores is not None)
        finite = np.ones(len(batch), dtype=np.bool_)
        for mode, rows in vectors.items():
            finite &= np.isfinite(rows).all(axis=1)
            result.vectors[mode][batch] = rows
        if scores is not None and result.scores is not None:
            finite &= np.isfinite(scores).all(axis=1)
            result.scores[batch] = scores
        self._fitted = max(self._fitted, len(ids))
        count(rows=len(batch), tokens=len(ids))
        for row in batch[~finite]:
            result.failed[int(row)] = ("NonFiniteError", "the model's output is not finite")

    def _compute(
        self, ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], pooling: Sequence[str], *, classify: bool
    ) -> tuple[dict[str, npt.NDArray[np.float32]], npt.NDArray[np.float32] | None]:
        """One pass: pooled vectors by mode, float32[rows, dim], and scores, float32[rows, classes]."""
        with self._streams.borrowed():
            packed = Packed.build(ids, lengths, self._device, self._weights.arithmetic.multiple)
            hidden = self._encoder(packed)
            outputs = [pool(hidden, packed, mode) for mode in pooling]
            if classify:
                outputs.append(self._classifier()(hidden, packed))
            # Even what nobody wants, so that what fails fails here.
            arrays = fetched(outputs or [hidden[:1].float()])
        count(slots=len(packed.ids))
        return dict(zip(pooling, arrays, strict=False)), arrays[-1] if classify else None

    def _classifier(self) -> ClassificationHead:
        if self._head is None:
            if not self.checkpoint.labels:
                raise CheckpointError(f"{self.checkpoint.folder} has no classification head")
            with self._loading():
                self._head = ClassificationHead(self._weights, self.checkpoint.scores_by)
        return self._head
