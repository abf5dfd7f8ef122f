"""The ceiling: how fast this machine multiplies matrices of the model's shapes, and does nothing else.

No single call is the fastest on every machine, so several are tried once and the best is what counts; on all cores
together, and on each core by itself.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from distilbeam.transforms.distilbert.lanes import in_lanes

from .measure import timed

__all__ = ["DTYPES", "Ceiling", "find"]

DTYPES = ("float32", "bfloat16", "int8")
_TOKENS = {"cpu": (512, 2048), "cuda": (4096, 32768)}
_PROBE = 64  # tokens
_SLOWER = 1.5  # what is so many times slower than the best is not tried on more tokens
_SECONDS = 0.3  # of a sample
_LONGEST = 1.0  # seconds that a pass may take, if fewer tokens were tried before

_Product = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Ceiling:
    """The fastest way found to multiply in one dtype.

    Attributes:
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        how: the call.
        tokens: rows of the left matrix.
        flops: FLOPs of one pass over all shapes, on each core where they work by themselves; for int8, operations.
        passes: passes that a sample has, so that it is long enough to be timed.
        work: one pass over all shapes, done when it returns.
    """

    dtype: str
    how: str
    tokens: int
    flops: int
    passes: int
    work: Callable[[], None]

    def sample(self) -> float:
        """FLOP/s of one sample, about 0.3 s long."""

        def several() -> None:
            for _ in range(self.passes):
                self.work()

        return self.flops * self.passes / timed(several)


@dataclass(frozen=True, slots=True)
class _Found:
    rate: float
    how: str
    tokens: int
    work: Callable[[], None]


def find(dtype: str, shapes: Sequence[tuple[int, int]], device: str = "cpu") -> Ceiling | None:
    """The fastest way to multiply ``[tokens, in] x [in, out]`` for all of some shapes in turn.

    Args:
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``int8``.
        shapes: (in, out) of each product.
        device: ``cpu`` or ``cuda[:n]``.

    Returns:
        None where torch has no such product here.
    """
    kind = device.partition(":")[0]
    ways = list(_ways(dtype, kind))
    best: _Found | None = None
    # The slow ones are given up on few tokens, since they may take seconds on many.
    for tokens in (_PROBE, *_TOKENS[kind]):
        if best is not None and best.tokens > _PROBE and _flops(shapes, tokens) > _LONGEST * best.rate:
            break
        found = [one for how in ways if (one := _try(how, dtype, shapes, tokens, device))]
        fastest = max((one.rate for one in found), default=0.0)
        ways = [one.how for one in found if one.rate * _SLOWER >= fastest]
        if best is not None and best.tokens > _PROBE:
            found.append(best)
        best = max(found, key=lambda one: one.rate, default=None)
    if best is None:
        return None
    lanes = torch.get_num_threads() if kind == "cpu" else 1
    if lanes > 1:
        beside = partial(_side_by_side, best.work, lanes)
        beside()
        rate = lanes * _flops(shapes, best.tokens) / min(timed(beside) for _ in range(3))
        if rate > best.rate:
            best = _Found(rate, f"{best.how}, on each core", best.tokens, beside)
        else:
            lanes = 1
    flops = lanes * _flops(shapes, best.tokens)
    return Ceiling(dtype, best.how, best.tokens, flops, max(1, round(_SECONDS * best.rate / flops)), best.work)


def _flops(shapes: Sequence[tuple[int, int]], tokens: int) -> int:
    return sum(2 * tokens * rows * columns for rows, columns in shapes)


def _try(how: str, dtype: str, shapes: Sequence[tuple[int, int]], tokens: int, device: str) -> _Found | None:
    """One way and its rate; None if this cannot be computed here."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            products = [_WAYS[how](dtype, tokens, *shape, device) for shape in shapes]
        work = partial(_pass, products, device)
        work()
    except (RuntimeError, AttributeError, NotImplementedError, TypeError):
        # Private operators differ between versions of torch, and some need instructions that are not here.
        return None
    seconds = [timed(work)]
    while len(seconds) < 5 and sum(seconds) < _SECONDS:
        seconds.append(timed(work))
    return _Found(_flops(shapes, tokens) / min(seconds), how, tokens, work)


@torch.inference_mode()
def _pass(products: Sequence[_Product], device: str) -> None:
    for product in products:
        product()
    if device != "cpu":
        torch.cuda.synchronize(device)


def _side_by_side(work: Callable[[], None], lanes: int) -> None:
    """A pass on each core at the same time."""
    in_lanes(deque([work] * lanes), lambda one: one(), lanes, lanes)


def _ways(dtype: str, kind: str) -> Iterator[str]:
    if dtype == "int8":
        yield "torch._int_mm"
        if kind == "cpu":
            yield "onednn.qlinear"
            yield from (f"quantized.linear ({engine})" for engine in _ENGINES)
        return
    yield "linear"
    if kind == "cpu":
        yield "prepacked linear"
        if dtype == "bfloat16":
            # Faster than what torch has for it on CPUs without bfloat16 instructions, and as exact.
            yield "float32 linear, rounded"
            yield "float32 prepacked linear, rounded"


def _linear(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    kind: torch.dtype = getattr(torch, dtype)
    x = torch.randn(tokens, rows, device=device).to(kind)
    weight, bias = torch.randn(columns, rows, device=device).to(kind), torch.zeros(columns, device=device, dtype=kind)
    return lambda: functional.linear(x, weight, bias)


def _prepacked(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    kind: torch.dtype = getattr(torch, dtype)
    x, bias = torch.randn(tokens, rows).to(kind), torch.zeros(columns, dtype=kind)
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(columns, rows).to(kind), tokens)
    return lambda: torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _rounded(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    x, weight, bias = torch.randn(tokens, rows).bfloat16(), torch.randn(columns, rows), torch.zeros(columns)
    return lambda: functional.linear(x.float(), weight, bias).bfloat16()


def _rounded_prepacked(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    x, bias = torch.randn(tokens, rows).bfloat16(), torch.zeros(columns)
    weight = torch.ops.mkldnn._reorder_linear_weight(torch.randn(columns, rows), tokens)
    return lambda: torch.ops.mkldnn._linear_pointwise(x.float(), weight, bias, "none", [], "").bfloat16()


def _int_mm(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    x = torch.randint(-127, 128, (tokens, rows), dtype=torch.int8, device=device)
    weight = torch.randint(-127, 128, (columns, rows), dtype=torch.int8, device=device).t()
    return lambda: torch._int_mm(x, weight)


def _qlinear(dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    x = torch.randint(0, 256, (tokens, rows), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (columns, rows), dtype=torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(weight, [tokens, rows])
    scales, zeros, bias = torch.full((columns,), 0.01), torch.zeros(columns, dtype=torch.int64), torch.zeros(columns)
    settings: tuple[Any, ...] = (scales, zeros, bias, 1.0, 0, torch.float32, "none", [], "")
    return lambda: torch.ops.onednn.qlinear_pointwise(x, 0.01, 128, packed, *settings)


def _quantized(engine: str, dtype: str, tokens: int, rows: int, columns: int, device: str) -> _Product:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = engine
    try:
        weight = torch.quantize_per_tensor(torch.randn(columns, rows), 0.02, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(weight, torch.zeros(columns))
    finally:
        torch.backends.quantized.engine = before
    x = torch.quantize_per_tensor(torch.randn(tokens, rows), 0.02, 64, torch.quint8)
    return lambda: torch.ops.quantized.linear(x, packed, 1.0, 64)


_ENGINES = ("fbgemm", "onednn")
_WAYS: dict[str, Callable[[str, int, int, int, str], _Product]] = {
    "linear": _linear,
    "prepacked linear": _prepacked,
    "float32 linear, rounded": _rounded,
    "float32 prepacked linear, rounded": _rounded_prepacked,
    "torch._int_mm": _int_mm,
    "onednn.qlinear": _qlinear,
    **{f"quantized.linear ({engine})": partial(_quantized, engine) for engine in _ENGINES},
}
