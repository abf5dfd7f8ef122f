"""Attention on packed rows against softmax written out, row by row."""

import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import varlen

from distilbeam.transforms.distilbert import attention
from distilbeam.transforms.distilbert.attention import (
    Attention,
    _keys_in_one_piece,
    attend_at_once,
    attend_by_runs,
    choose_attention,
    is_right_at_once,
)
from distilbeam.transforms.distilbert.packed import Packed

LENGTHS = [3, 3, 1, 7, 2, 2, 2, 5, 1, 1]
HEADS, DIM = 4, 32
CPU = torch.device("cpu")


def packed(multiple: int = 1) -> Packed:
    return Packed.build(np.zeros(sum(LENGTHS), dtype=np.int32), np.array(LENGTHS, dtype=np.int64), multiple=multiple)


def random_qkv(tokens: int) -> torch.Tensor:
    return torch.randn(tokens, 3 * DIM, generator=torch.Generator().manual_seed(3))


def written_out(qkv: torch.Tensor) -> torch.Tensor:
    """Vaswani et al. 2017, section 3.2, in float64: [tokens, dim]."""
    rows = []
    for row in qkv.double().split(LENGTHS):
        query, key, value = (part.view(len(row), HEADS, -1).transpose(0, 1) for part in row.split(DIM, dim=1))
        weights = (query @ key.transpose(1, 2) / (DIM / HEADS) ** 0.5).softmax(-1)
        rows.append((weights @ value).transpose(0, 1).reshape(len(row), DIM))
    return torch.cat(rows).float()


SPLITS: list[int | None] = []


def kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, num_splits: int | None = None
) -> torch.Tensor:
    """What torch says of its kernel, which needs a GPU: [tokens, heads, dim per head] each, and where rows begin."""
    starts, key_starts, longest, key_longest = rest
    for part in (query, key, value):
        # What the kernel checks; it takes 16 bits alone, in which softmax written out cannot be held against.
        assert (part.dim(), part.stride(2)) == (3, 1)
        assert part.shape[2] % 8 == 0
        assert part.shape[2] <= 256
    assert starts.dtype == torch.int32
    assert starts.is_contiguous()
    assert starts is key_starts
    assert longest == key_longest == int(starts.diff().max())
    assert starts[-1] == len(query)
    SPLITS.append(num_splits)
    out = torch.empty_like(query)
    for start, stop in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        weights = torch.einsum("qhd,khd->hqk", query[start:stop], key[start:stop]) / query.shape[2] ** 0.5
        out[start:stop] = torch.einsum("hqk,khd->qhd", weights.softmax(-1), value[start:stop])
    return out


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """What torch's kernel can be told is asked once in a process, and it is replaced here."""
    _keys_in_one_piece.cache_clear()
    SPLITS.clear()
    yield
    _keys_in_one_piece.cache_clear()


@pytest.mark.parametrize("attend", [attend_by_runs, attend_at_once])
def test_attention_is_softmax_inside_each_row(attend: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    qkv = random_qkv(sum(LENGTHS))
    torch.testing.assert_close(attend(qkv, packed(), HEADS), written_out(qkv), atol=1e-6, rtol=0)


def test_what_fills_up_gets_nothing_and_changes_nothing() -> None:
    qkv = random_qkv(32)
    qkv[sum(LENGTHS) :] = torch.nan
    attended = attend_by_runs(qkv, packed(multiple=16), HEADS)
    torch.testing.assert_close(attended[: sum(LENGTHS)], written_out(qkv[: sum(LENGTHS)]), atol=1e-6, rtol=0)
    assert (attended[sum(LENGTHS) :] == 0).all()


def test_a_row_does_not_depend_on_how_many_others_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    for split in (False, True):
        attend_at_once(random_qkv(sum(LENGTHS)), packed(), HEADS, split=split)
    assert SPLITS == [1, None]


def test_torch_has_the_call_and_its_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors that claim to be on a GPU, which torch gives shapes to without one.
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    with FakeTensorMode():
        qkv = torch.empty(sum(LENGTHS), 3 * 768, device="cuda", dtype=torch.bfloat16)
        offsets = torch.empty(len(LENGTHS) + 1, device="cuda", dtype=torch.int32)
        rows = Packed(ids=offsets, positions=offsets, offsets=offsets, runs=(), longest=max(LENGTHS))
        found = attend_at_once(qkv, rows, heads=12)
    assert (tuple(found.shape), found.dtype, found.device.type) == ((sum(LENGTHS), 768), torch.bfloat16, "cuda")
    assert set(_keys_in_one_piece()) <= set(inspect.signature(varlen.varlen_attn).parameters)


def wrong(query: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
    return kernel(query, *rest, **settings) + 0.5


def not_finite(query: torch.Tensor, *rest: Any, **settings: Any) -> torch.Tensor:
    return torch.full_like(query, torch.nan)


def missing(*_: Any, **__: Any) -> torch.Tensor:
    raise AssertionError("no such backend")


def full(*_: Any, **__: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError


@pytest.mark.parametrize(
    ("found", "right", "said"),
    [
        (kernel, True, ""),
        (wrong, False, "errs by"),
        (not_finite, False, "errs by nan"),
        (missing, False, "no kernel here (AssertionError: no such backend)"),
    ],
)
def test_a_kernel_is_tried_before_it_is_trusted(
    found: Callable[..., torch.Tensor],
    right: bool,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", found)
    with caplog.at_level(logging.INFO):
        assert is_right_at_once(CPU, torch.bfloat16, HEADS, DIM) is right
    assert said in caplog.text


def test_too_little_memory_is_not_taken_for_a_missing_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", full)
    with pytest.raises(torch.OutOfMemoryError):
        is_right_at_once(CPU, torch.bfloat16, HEADS, DIM)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), attend_by_runs), ((8, 0), attend_at_once)])
def test_old_gpus_are_not_tried(
    capability: tuple[int, int], expected: Attention, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(attention, "is_right_at_once", lambda *_: True)
    assert choose_attention(torch.device("cuda"), torch.float16, HEADS, DIM) is expected
    assert choose_attention(torch.device("cuda"), torch.float32, HEADS, DIM) is attend_by_runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_attends_by_runs(dtype: torch.dtype) -> None:
    assert choose_attention(CPU, dtype, HEADS, DIM) is attend_by_runs


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_attends_to_all_rows_at_once(dtype: torch.dtype) -> None:
    assert choose_attention(torch.device("cuda"), dtype, 12, 768) is attend_at_once
