"""The model at work: device, dtype, threads, and the loop over micro-batches."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from distilbeam.transforms.batching import micro_batches
from distilbeam.transforms.errors import CheckpointError, SettingsError
from distilbeam.transforms.metrics import LIVE
from distilbeam.transforms.tokenization import Tokens

from .checkpoint import Checkpoint
from .heads import ClassificationHead
from .packed import Packed, PackedEncoder
from .pooling import pool
from .weights import Weights

__all__ = ["Compute", "Engine", "Result", "choose_compute"]

_log = logging.getLogger(__name__)

# Before any engine has set another number.
_DEFAULT_THREADS = torch.get_num_threads()
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True)
class Compute:
    """What the model runs on: ``cpu`` or ``cuda[:n]``; ``float32``, ``bfloat16`` or ``float16``; CPU threads."""

    device: str
    dtype: str
    threads: int


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


def choose_compute(device: str = "auto", dtype: str = "auto", threads: int | None = None) -> Compute:
    """Settle what is ``auto`` for this machine.

    CUDA where there is one; bfloat16 on GPUs since Ampere and on CPUs with bfloat16 instructions, float16 on older
    GPUs, float32 elsewhere; as many threads as torch sees fit.

    Raises:
        SettingsError: an explicit device or dtype cannot be had here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda"):
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        index = int(device.partition(":")[2] or 0)
        if index >= count:
            raise SettingsError(
                f"device {device!r} is not here: this worker has {count} CUDA devices; use 'cpu' or 'auto'"
            )
    if dtype == "auto":
        if device == "cpu":
            dtype = "bfloat16" if _cpu_has_bfloat16() else "float32"
        else:
            dtype = "bfloat16" if torch.cuda.get_device_capability(device)[0] >= 8 else "float16"
    if dtype == "float16" and device == "cpu":
        raise SettingsError("dtype 'float16' needs a CUDA device; use 'bfloat16' or 'float32' on the CPU")
    return Compute(device=device, dtype=dtype, threads=threads or _DEFAULT_THREADS)


def _cpu_has_bfloat16() -> bool:
    capabilities: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


class Engine:
    """One loaded model. Safe to call from several threads, which take turns."""

    def __init__(self, checkpoint: Checkpoint, compute: Compute, token_budget: int | None = None) -> None:
        self.checkpoint = checkpoint
        self.compute = compute
        on_cpu = compute.device == "cpu"
        self._device = torch.device(compute.device)
        # Enough tokens to fill the matrix units, few enough to stay in the caches of a CPU.
        self._token_budget = token_budget or (2048 if on_cpu else 32768)
        if on_cpu and compute.threads != torch.get_num_threads():
            torch.set_num_threads(compute.threads)
        dtype = _DTYPES[compute.dtype]
        widen = on_cpu and dtype == torch.bfloat16 and not _cpu_has_bfloat16()
        self._weights = Weights(checkpoint, self._device, dtype, widen)
        self._encoder = PackedEncoder(self._weights, checkpoint.config)
        self._head: ClassificationHead | None = None
        self._passes = 0
        self._lock = threading.Lock()
        _log.info("%s runs on %s in %s with %d threads", checkpoint.id, compute.device, compute.dtype, compute.threads)

    def run(self, tokens: Tokens, pooling: Sequence[str] = (), classify: bool = False) -> Result:
        """Run the encoder once over all rows.

        A micro-batch that fails, out of memory for one, is halved until the rows that fail stand alone. Where all of
        them fail, and so does the smallest possible row, the fault is not the rows', and the error is raised.

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
        with self._lock, torch.inference_mode():
            if classify:
                # Before the loop, where a failure would count against the rows.
                self._classifier()
            for batch in micro_batches(tokens.lengths, self._token_budget):
                passes = self._passes
                self._run_or_halve(tokens, batch, result)
                if self._passes == passes:
                    self._probe(tokens, int(batch[0]))
        return result

    def _run_or_halve(self, tokens: Tokens, batch: npt.NDArray[np.int64], result: Result) -> None:
        try:
            self._run_batch(tokens, batch, result)
        except Exception as error:
            if len(batch) == 1:
                result.failed[int(batch[0])] = (type(error).__name__, "the model failed on this row alone")
                return
            failure = type(error).__name__
        else:
            return
        # Outside the handler, so that the failed attempt's tensors are free.
        _log.warning("a micro-batch of %d rows failed with %s and is halved", len(batch), failure)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        for half in np.array_split(batch, 2):
            self._run_or_halve(tokens, half, result)

    def _probe(self, tokens: Tokens, row: int) -> None:
        """Run the special tokens of a row alone, which fails only where the device or the model is broken."""
        start, stop = tokens.offsets[row], tokens.offsets[row + 1]
        ids = tokens.ids[[start, stop - 1]]
        self._encoder(Packed.build(ids, np.array([len(ids)]), self._device)).cpu()

    def _run_batch(self, tokens: Tokens, batch: npt.NDArray[np.int64], result: Result) -> None:
        lengths = tokens.lengths[batch]
        starts = tokens.offsets[batch]
        ids = np.concatenate(
            [tokens.ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]
        )
        packed = Packed.build(ids, lengths, self._device)
        hidden = self._encoder(packed)
        outputs = {mode: pool(hidden, packed, mode).cpu().numpy() for mode in result.vectors}
        finite = np.ones(len(batch), dtype=np.bool_)
        for mode, vectors in outputs.items():
            finite &= np.isfinite(vectors).all(axis=1)
            result.vectors[mode][batch] = vectors
        if result.scores is not None:
            scores = self._classifier()(hidden, packed).cpu().numpy()
            finite &= np.isfinite(scores).all(axis=1)
            result.scores[batch] = scores
        self._passes += 1
        LIVE.add(rows=len(batch), tokens=len(ids), slots=len(packed.ids))
        for row in batch[~finite]:
            result.failed[int(row)] = ("NonFiniteError", "the model's output is not finite")

    def _classifier(self) -> ClassificationHead:
        if self._head is None:
            if not self.checkpoint.labels:
                raise CheckpointError(f"{self.checkpoint.folder} has no classification head")
            self._head = ClassificationHead(self._weights, multi_label=self.checkpoint.multi_label)
        return self._head
