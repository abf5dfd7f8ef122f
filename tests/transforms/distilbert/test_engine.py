"""The engine: what it runs on, order and micro-batches, and rows that break the model."""

import gc
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilbeam.transforms.distilbert import engine as engine_module
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.compute import Compute, choose_compute
from distilbeam.transforms.distilbert.engine import Engine
from distilbeam.transforms.distilbert.pooling import pool
from distilbeam.transforms.errors import CheckpointError, DistilbeamError
from distilbeam.transforms.tokenization import Tokens
from tests.checkpoints import DIM, Checkpoints

AsTokens = Callable[[list[list[int]]], Tokens]
FLOAT32 = Compute("cpu", "float32", 1)


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("token_budget", [1, 7, 64, 500, 100_000, None])
def test_outputs_are_hugging_faces_in_the_order_of_the_rows(
    checkpoints: Checkpoints, ragged: list[list[int]], as_tokens: AsTokens, hugging_face: Any, token_budget: int | None
) -> None:
    folder = checkpoints.three_classes
    hidden = hugging_face.hidden(folder, ragged)
    expected = {
        "mean": torch.stack([states.mean(0) for states in hidden]),
        "max": torch.stack([states.amax(0) for states in hidden]),
        "cls": torch.stack([states[0] for states in hidden]),
    }
    engine = Engine(Checkpoint.open(folder), FLOAT32, token_budget)
    result = engine.run(as_tokens(ragged), ("mean", "max", "cls"), classify=True)
    assert result.failed == {}
    for mode, vectors in expected.items():
        assert (result.vectors[mode].dtype, result.vectors[mode].shape) == (np.float32, (len(ragged), DIM))
        assert np.abs(result.vectors[mode] - vectors.numpy()).max() < 1e-5
    assert result.scores is not None
    assert result.scores.dtype == np.float32
    assert np.abs(result.scores - hugging_face.logits(folder, ragged).softmax(1).numpy()).max() < 1e-5


@pytest.mark.parametrize(
    "message",
    [
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory",
        "unable to mmap 267832560 bytes from file </models/model.safetensors>: Cannot allocate memory (12)",
        "CUDA out of memory. Tried to allocate 90.00 MiB",
    ],
)
def test_a_model_that_does_not_fit_is_said_in_one_sentence(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    def full(*_: Any) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(engine_module, "PackedEncoder", full)
    with pytest.raises(DistilbeamError, match=r"memory is too small to load .* on cpu in float32"):
        Engine(Checkpoint.open(checkpoints.bare), FLOAT32)


def test_what_else_fails_while_loading_is_raised(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PackedEncoder", lambda *_: {}["no such weight"])
    with pytest.raises(KeyError):
        Engine(Checkpoint.open(checkpoints.bare), FLOAT32)


def test_all_of_a_pass_is_done_in_its_stream(
    checkpoints: Checkpoints, ragged: list[list[int]], as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.classifier), replace(FLOAT32, threads=2), token_budget=100)
    inside, done = threading.local(), []

    class Recording:
        @contextmanager
        def borrowed(self) -> Iterator[None]:
            inside.yes = True
            yield
            inside.yes = False

    def seen(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            done.append((name, getattr(inside, "yes", False)))
            return original(*arguments)

        return called

    monkeypatch.setattr(engine, "_streams", Recording())
    monkeypatch.setattr(engine, "_encoder", seen("encoder", engine._encoder))
    monkeypatch.setattr(engine, "_head", seen("head", engine._classifier()))
    monkeypatch.setattr(engine_module, "pool", seen("pool", pool))
    monkeypatch.setattr(engine_module, "fetched", seen("fetched", engine_module.fetched))
    engine.run(as_tokens(ragged), ("mean",), classify=True)
    assert {name for name, _ in done} == {"encoder", "head", "pool", "fetched"}
    assert len(done) > 12
    assert all(within for _, within in done)


def test_nothing_is_computed_that_is_not_asked(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    result = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32).run(as_tokens([[2, 3]]))
    assert (result.vectors, result.scores) == ({}, None)


def test_no_rows(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    result = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32).run(as_tokens([]), ("mean",), classify=True)
    assert result.vectors["mean"].shape == (0, DIM)
    assert result.scores is not None
    assert result.scores.shape == (0, 2)


def test_classes_need_a_head(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)
    with pytest.raises(CheckpointError, match="no classification head"):
        engine.run(as_tokens([[2, 3]]), classify=True)


class Breaking:
    """An encoder that fails at one token id."""

    def __init__(self, encoder: Any, token: int, error: type[Exception]) -> None:
        self._encoder = encoder
        self._token = token
        self._error = error
        self.calls = 0

    def __call__(self, packed: Any) -> torch.Tensor:
        self.calls += 1
        if bool((packed.ids == self._token).any()):
            raise self._error("private details")
        return self._encoder(packed)


def triples(count: int) -> list[list[int]]:
    return [[2, 10 + row, 3] for row in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 37, 64])
def test_a_row_that_breaks_the_model_fails_alone_wherever_it_stands(
    checkpoints: Checkpoints, as_tokens: AsTokens, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    rows = triples(count)
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)
    expected = engine.run(as_tokens(rows), ("mean",)).vectors["mean"]
    encoder = engine._encoder
    most = 0
    for bad in range(count):
        breaking = Breaking(encoder, 10 + bad, RuntimeError)
        engine._encoder = breaking  # type: ignore[assignment]
        with caplog.at_level(logging.WARNING):
            result = engine.run(as_tokens(rows), ("mean",))
        assert {row: name for row, (name, _) in result.failed.items()} == {bad: "RuntimeError"}
        most = max(most, breaking.calls - 1 - (count == 1))  # a row that is alone is followed by a probe
        good = np.arange(count) != bad
        np.testing.assert_allclose(result.vectors["mean"][good], expected[good], atol=1e-5)
        assert not result.vectors["mean"][bad].any()
        assert "private" not in caplog.text + str(result.failed)
    assert most <= 2 * math.log2(count), "extra passes"
    assert most >= math.log2(count), "or else the row never failed"


@pytest.mark.parametrize("part", ["pool", "head"])
def test_a_row_that_breaks_what_comes_after_the_encoder_fails_alone(
    checkpoints: Checkpoints, as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    rows, calls = triples(20), 0
    engine = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32)
    expected = engine.run(as_tokens(rows), ("mean",), classify=True)
    head, original = engine._classifier(), engine_module.pool

    def check(packed: Any) -> None:
        nonlocal calls
        calls += 1
        if bool((packed.ids == 10 + 13).any()):
            raise ValueError("private details")

    class Head:
        def __call__(self, hidden: torch.Tensor, packed: Any) -> torch.Tensor:
            check(packed)
            return head(hidden, packed)

    def pooling(hidden: torch.Tensor, packed: Any, mode: str) -> torch.Tensor:
        check(packed)
        return original(hidden, packed, mode)

    if part == "head":
        monkeypatch.setattr(engine, "_head", Head())
    else:
        monkeypatch.setattr(engine_module, "pool", pooling)
    result = engine.run(as_tokens(rows), ("mean",), classify=True)
    assert {row: name for row, (name, _) in result.failed.items()} == {13: "ValueError"}
    assert calls - 1 <= 2 * math.log2(20)
    assert expected.scores is not None
    assert result.scores is not None
    np.testing.assert_allclose(np.delete(result.scores, 13, 0), np.delete(expected.scores, 13, 0), atol=1e-5)


def test_a_head_that_breaks_on_every_row_is_no_bad_row(
    checkpoints: Checkpoints, as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32)

    def broken(hidden: object, packed: object) -> None:
        raise RuntimeError("the head is broken")

    monkeypatch.setattr(engine, "_head", broken)
    with pytest.raises(RuntimeError, match="the head is broken"):
        engine.run(as_tokens(triples(5)), ("mean",), classify=True)


class Small:
    """An encoder on a device whose memory holds so many tokens."""

    def __init__(self, encoder: Any, limit: int, error: Exception) -> None:
        self._encoder = encoder
        self._limit = limit
        self._error = error
        self.refused = 0
        self.sizes: list[int] = []

    def __call__(self, packed: Any) -> torch.Tensor:
        self.sizes.append(len(packed.ids))
        if len(packed.ids) > self._limit:
            self.refused += 1
            raise self._error
        return self._encoder(packed)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_a_small_memory_is_remembered(
    checkpoints: Checkpoints, as_tokens: AsTokens, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    random = np.random.default_rng(3)
    rows = [[2, *random.integers(5, 150, int(length)).tolist(), 3] for length in random.integers(1, 60, 1500)]
    tokens = as_tokens(rows)
    plain = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, 400)
    expected = plain.run(tokens, ("mean",)).vectors["mean"]
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, 4096)
    small = Small(engine._encoder, 300, error)
    engine._encoder = small  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        result = engine.run(tokens, ("mean",))
    assert result.failed == {}
    np.testing.assert_allclose(result.vectors["mean"], expected, atol=1e-5)
    assert small.refused > 0
    assert small.refused <= math.ceil(math.log2(4096 / 300))
    assert len(small.sizes) > 100, "a hundred micro-batches"
    assert caplog.text.count("out of memory") == 1
    before = small.refused
    assert engine.run(tokens, ("mean",)).failed == {}
    assert small.refused == before, "a second call asked for too much again"


def test_a_row_that_does_not_fit_alone_is_rejected_and_costs_the_others_nothing(
    checkpoints: Checkpoints, as_tokens: AsTokens
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, 512)
    rows = [[2] + [9] * (62 if row in (3, 40) else 6) + [3] for row in range(64)]
    engine._encoder = Small(engine._encoder, 63, MemoryError())  # type: ignore[assignment]
    result = engine.run(as_tokens(rows), ("mean",))
    reason = ("OutOfMemory", "the memory is too small for this row alone")
    assert result.failed == {3: reason, 40: reason}
    assert result.vectors["mean"][[0, 63]].any(axis=1).all()


def test_a_row_that_always_runs_out_of_memory_lowers_no_budget(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, 96)
    assert engine.run(as_tokens(triples(64)), ("mean",)).failed == {}
    encoder = engine._encoder
    engine._encoder = Breaking(encoder, 10 + 7, MemoryError)  # type: ignore[assignment]
    assert list(engine.run(as_tokens(triples(64)), ("mean",)).failed) == [7]
    small = Small(encoder, 10_000, MemoryError())
    engine._encoder = small  # type: ignore[assignment]
    engine.run(as_tokens(triples(64)), ("mean",))
    assert small.sizes == [96, 96]


def test_other_failures_lower_no_budget(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, 96)
    encoder = engine._encoder
    engine._encoder = Breaking(encoder, 10 + 7, RuntimeError)  # type: ignore[assignment]
    assert list(engine.run(as_tokens(triples(64)), ("mean",)).failed) == [7]
    small = Small(encoder, 10_000, MemoryError())
    engine._encoder = small  # type: ignore[assignment]
    engine.run(as_tokens(triples(64)), ("mean",))
    assert small.sizes == [96, 96]


def test_no_memory_at_all_is_no_bad_row(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)
    engine._encoder = Small(engine._encoder, 1, torch.OutOfMemoryError("CUDA out of memory"))  # type: ignore[assignment]
    with pytest.raises(torch.OutOfMemoryError):
        engine.run(as_tokens(triples(4)), ("mean",))


def test_a_broken_device_is_no_bad_row(
    checkpoints: Checkpoints, as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)

    def broken(packed: object) -> None:
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(engine, "_encoder", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run(as_tokens([[2, 10 + row, 3] for row in range(5)]), ("mean",))


def test_a_row_whose_output_is_not_finite_fails_alone(
    checkpoints: Checkpoints, ragged: list[list[int]], as_tokens: AsTokens
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32)
    rows = [[token if token != 50 else 51 for token in row] for row in ragged]
    expected = engine.run(as_tokens(rows), ("mean",), classify=True)
    words = engine._encoder._words.clone()
    words[50] = torch.nan
    engine._encoder._words = words
    rows[3] = [*rows[3][:-1], 50]
    result = engine.run(as_tokens(rows), ("mean",), classify=True)
    assert {row: name for row, (name, _) in result.failed.items()} == {3: "NonFiniteError"}
    good = np.arange(len(rows)) != 3
    assert result.scores is not None
    assert expected.scores is not None
    np.testing.assert_allclose(result.vectors["mean"][good], expected.vectors["mean"][good], atol=1e-5)
    np.testing.assert_allclose(result.scores[good], expected.scores[good], atol=1e-5)


def test_an_interrupt_is_no_bad_row(
    checkpoints: Checkpoints, as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)

    def interrupted(packed: Any) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "_encoder", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.run(as_tokens([[2, 3], [2, 3]]), ("mean",))


def test_threads_take_turns(
    checkpoints: Checkpoints, ragged: list[list[int]], as_tokens: AsTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32, token_budget=64)
    inside, most = 0, 0

    def watched(*arguments: Any) -> torch.Tensor:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        pooled = pool(*arguments)
        inside -= 1
        return pooled

    monkeypatch.setattr(engine_module, "pool", watched)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(engine.run(as_tokens(ragged), ("mean",)))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    for result in results:
        np.testing.assert_array_equal(result.vectors["mean"], results[0].vectors["mean"])
    assert len(results) == 4


LANES = Compute("cpu", "float32", 3)


def test_outputs_do_not_depend_on_what_runs_side_by_side(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    random = np.random.default_rng(5)
    rows = [[2, *random.integers(5, 150, int(length)).tolist(), 3] for length in random.integers(1, 60, 600)]
    checkpoint = Checkpoint.open(checkpoints.classifier)
    expected = Engine(checkpoint, FLOAT32).run(as_tokens(rows), ("mean", "cls"), classify=True)
    for budget in (64, 500, None):
        result = Engine(checkpoint, LANES, budget).run(as_tokens(rows), ("mean", "cls"), classify=True)
        assert result.failed == {}
        assert result.scores is not None
        assert expected.scores is not None
        np.testing.assert_allclose(result.scores, expected.scores, atol=1e-5)
        for mode in ("mean", "cls"):
            np.testing.assert_allclose(result.vectors[mode], expected.vectors[mode], atol=1e-5)


def test_rows_that_break_the_model_fail_alone_in_every_lane(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), LANES, 48)
    expected = engine.run(as_tokens(triples(60)), ("mean",)).vectors["mean"]
    encoder = engine._encoder
    for bad in (7, 31, 59):
        encoder = Breaking(encoder, 10 + bad, ValueError)
    engine._encoder = encoder  # type: ignore[assignment]
    result = engine.run(as_tokens(triples(60)), ("mean",))
    assert sorted(result.failed) == [7, 31, 59]
    good = np.setdiff1d(np.arange(60), [7, 31, 59])
    np.testing.assert_allclose(result.vectors["mean"][good], expected[good], atol=1e-5)


class Crowded(Small):
    """An encoder that runs out of memory when it is used twice at once."""

    def __init__(self, encoder: Any) -> None:
        super().__init__(encoder, 10_000, MemoryError())
        self._inside = 0
        self._together = threading.Barrier(3)

    def __call__(self, packed: Any) -> torch.Tensor:
        self._inside += 1
        try:
            if self.refused == 0:
                self._together.wait(20)
            if self._inside > 1:
                self.refused += 1
                raise self._error
            return super().__call__(packed)
        finally:
            self._inside -= 1


def test_memory_for_one_pass_only_is_remembered(
    checkpoints: Checkpoints, as_tokens: AsTokens, caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), LANES, 96)
    expected = engine.run(as_tokens(triples(120)), ("mean",)).vectors["mean"]
    engine._encoder = crowded = Crowded(engine._encoder)  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        result = engine.run(as_tokens(triples(120)), ("mean",))
        assert result.failed == {}
        refused = crowded.refused
        assert 0 < refused <= 3
        assert engine.run(as_tokens(triples(120)), ("mean",)).failed == {}
    assert crowded.refused == refused, "it was tried again"
    assert max(crowded.sizes) == 96, "the token budget was lowered"
    np.testing.assert_allclose(result.vectors["mean"], expected, atol=1e-5)
    assert caplog.text.count("out of memory on cpu: passes run one by one from here on") == 1


def test_a_broken_model_is_no_bad_row_in_lanes_either(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), LANES, 96)
    engine._encoder = Small(engine._encoder, 0, RuntimeError("the device is gone"))  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run(as_tokens(triples(200)), ("mean",))


def test_a_device_that_breaks_is_no_bad_row_though_another_lane_came_through(
    checkpoints: Checkpoints, as_tokens: AsTokens
) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), replace(LANES, threads=2), 30)
    encoder, calls, lock = engine._encoder, iter(range(1000)), threading.Lock()
    second, first_done = threading.Event(), threading.Event()

    def breaking(packed: Any) -> torch.Tensor:
        with lock:
            call = next(calls)
        if call == 0:
            second.wait(10)
            first_done.set()
            return encoder(packed)
        second.set()
        first_done.wait(10)
        raise RuntimeError("the device is gone")

    engine._encoder = breaking  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="the device is gone"):
        engine.run(as_tokens(triples(20)), ("mean",))


def test_a_row_that_never_fits_takes_no_lane_away(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), LANES, 96)
    engine._encoder = Breaking(engine._encoder, 10 + 7, MemoryError)  # type: ignore[assignment]
    for _ in range(2):
        result = engine.run(as_tokens(triples(120)), ("mean",))
        assert {row: name for row, (name, _) in result.failed.items()} == {7: "OutOfMemory"}
        assert engine._lanes == 3


def test_results_are_free_once_nobody_holds_them(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    engine = Engine(Checkpoint.open(checkpoints.bare), LANES, 96)
    gc.disable()
    try:
        result = engine.run(as_tokens(triples(60)), ("mean",))
        vectors = weakref.ref(result.vectors["mean"])
        del result
        assert vectors() is None
    finally:
        gc.enable()


def test_threads_are_obeyed(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    default = choose_compute("cpu", "float32").threads
    found: list[int] = []
    for threads in (2, 1, 3):
        compute = choose_compute("cpu", "float32", threads)
        assert compute.threads == threads
        engine = Engine(Checkpoint.open(checkpoints.bare), compute)
        compute_batch = engine._run_batch
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                engine,
                "_run_batch",
                lambda *given, run=compute_batch: (found.append(torch.get_num_threads()), run(*given)),
            )
            engine.run(as_tokens([[2, 3]]), ("mean",))
        assert found.pop() == threads
        assert torch.get_num_threads() == default
    # What one engine was told is no default for the next.
    assert choose_compute("cpu", "float32").threads == default


@pytest.mark.parametrize(
    ("has_bfloat16", "dtype", "multiple"), [(True, "bfloat16", 64), (True, "float32", 1), (False, "bfloat16", 1)]
)
def test_few_numbers_of_tokens_where_each_new_one_costs_time(
    checkpoints: Checkpoints,
    ragged: list[list[int]],
    as_tokens: AsTokens,
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
    dtype: str,
    multiple: int,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    engine = Engine(Checkpoint.open(checkpoints.bare), replace(FLOAT32, dtype=dtype), token_budget=100)
    encoder, sizes = engine._encoder, []

    def watched(packed: Any) -> torch.Tensor:
        sizes.append(len(packed.ids))
        return encoder(packed)

    monkeypatch.setattr(engine, "_encoder", watched)
    assert engine.run(as_tokens(ragged), ("mean",)).failed == {}
    assert len(sizes) > 3
    assert (math.gcd(*sizes) % 64 == 0) == (multiple == 64)


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_bfloat16_with_and_without_instructions(
    checkpoints: Checkpoints,
    ragged: list[list[int]],
    as_tokens: AsTokens,
    monkeypatch: pytest.MonkeyPatch,
    has_bfloat16: bool,
) -> None:
    tokens = as_tokens(ragged)
    exact = Engine(Checkpoint.open(checkpoints.classifier), FLOAT32).run(tokens, ("mean",), classify=True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bfloat16})
    compute = replace(FLOAT32, dtype="bfloat16")
    reduced = Engine(Checkpoint.open(checkpoints.classifier), compute).run(tokens, ("mean",), classify=True)
    a, b = exact.vectors["mean"], reduced.vectors["mean"]
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.999
    assert exact.scores is not None
    assert reduced.scores is not None
    assert np.abs(exact.scores - reduced.scores).max() < 0.05
    assert not np.array_equal(a, b)


def test_the_choice_is_logged(checkpoints: Checkpoints, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Engine(Checkpoint.open(checkpoints.bare), FLOAT32)
    assert f"{checkpoints.bare} runs on cpu in float32 with 1 threads" in caplog.text


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", None), ("float16", None)])
def test_cuda_agrees_with_the_cpu(
    checkpoints: Checkpoints, ragged: list[list[int]], as_tokens: AsTokens, dtype: str, tolerance: float | None
) -> None:
    tokens = as_tokens(ragged)
    checkpoint, modes = Checkpoint.open(checkpoints.classifier), ("mean", "max", "cls")
    right = Engine(checkpoint, FLOAT32).run(tokens, modes, classify=True)
    for token_budget in (None, 100):  # one micro-batch, and many in turns on the streams
        found = Engine(checkpoint, choose_compute("cuda", dtype), token_budget).run(tokens, modes, classify=True)
        assert found.failed == {}
        for mode in modes:
            cpu, gpu = right.vectors[mode], found.vectors[mode]
            assert ((cpu * gpu).sum(1) / np.linalg.norm(cpu, axis=1) / np.linalg.norm(gpu, axis=1)).min() > 0.999
            if tolerance is not None:
                assert np.abs(cpu - gpu).max() < tolerance
        assert right.scores is not None
        assert found.scores is not None
        assert np.abs(right.scores - found.scores).max() < (tolerance or 0.05)


def test_weights_are_read_from_the_transformers_folder(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    checkpoint = Checkpoint.open(checkpoints.bare)
    assert checkpoint.folder == Path(checkpoints.bare)
    ours = Engine(checkpoint, FLOAT32).run(as_tokens([[2, 9, 3]]), ("cls",)).vectors["cls"]
    theirs = Engine(Checkpoint.open(checkpoints.sentence), FLOAT32).run(as_tokens([[2, 9, 3]]), ("cls",)).vectors["cls"]
    np.testing.assert_array_equal(ours, theirs)
