"""The engine: what it runs on, order and micro-batches, and rows that break the model."""

import logging
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distilbeam.transforms.distilbert import engine as engine_module
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.engine import Compute, Engine, choose_compute
from distilbeam.transforms.distilbert.pooling import pool
from distilbeam.transforms.errors import CheckpointError, SettingsError
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


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, torch.OutOfMemoryError])
@pytest.mark.parametrize("bad", [0, 31, 63])
def test_a_row_that_breaks_the_model_fails_alone(
    checkpoints: Checkpoints,
    as_tokens: AsTokens,
    caplog: pytest.LogCaptureFixture,
    bad: int,
    error: type[Exception],
) -> None:
    rows = [[2, 10 + row, 3] for row in range(64)]
    engine = Engine(Checkpoint.open(checkpoints.bare), FLOAT32)
    expected = engine.run(as_tokens(rows), ("mean",)).vectors["mean"]
    breaking = Breaking(engine._encoder, 10 + bad, error)
    engine._encoder = breaking  # type: ignore[assignment]
    with caplog.at_level(logging.WARNING):
        result = engine.run(as_tokens(rows), ("mean",))
    assert {row: name for row, (name, _) in result.failed.items()} == {bad: error.__name__}
    assert breaking.calls <= 2 * math.log2(64) + 1
    good = np.arange(64) != bad
    np.testing.assert_allclose(result.vectors["mean"][good], expected[good], atol=1e-5)
    assert not result.vectors["mean"][bad].any()
    assert "private" not in caplog.text + str(result.failed)


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


def test_threads_are_obeyed(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    default = choose_compute("cpu", "float32").threads
    for threads in (2, 1, 3):
        compute = choose_compute("cpu", "float32", threads)
        assert compute.threads == threads
        Engine(Checkpoint.open(checkpoints.bare), compute).run(as_tokens([[2, 3]]), ("mean",))
        assert torch.get_num_threads() == threads
    # What one engine was told is no default for the next.
    assert choose_compute("cpu", "float32").threads == default


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [
        ({}, "float32"),
        ({"avx2": True, "avx512_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert choose_compute() == Compute("cpu", dtype, torch.get_num_threads())


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_takes_cuda_where_it_is(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    compute = choose_compute()
    assert (compute.device, compute.dtype) == ("cuda", dtype)
    assert choose_compute("cuda:1", "float32").device == "cuda:1"
    with pytest.raises(SettingsError, match="'cuda:2' is not here: this worker has 2 CUDA devices"):
        choose_compute("cuda:2")


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
def test_cuda_is_not_replaced_where_it_is_missing(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match=f"'{device}' is not here: this worker has 0 CUDA devices; use 'cpu'"):
        choose_compute(device)


def test_float16_is_refused_on_the_cpu() -> None:
    with pytest.raises(SettingsError, match="'float16' needs a CUDA device; use 'bfloat16' or 'float32'"):
        choose_compute("cpu", "float16")


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
    cpu = Engine(Checkpoint.open(checkpoints.bare), FLOAT32).run(tokens, ("mean",)).vectors["mean"]
    compute = choose_compute("cuda", dtype)
    gpu = Engine(Checkpoint.open(checkpoints.bare), compute).run(tokens, ("mean",)).vectors["mean"]
    assert ((cpu * gpu).sum(1) / np.linalg.norm(cpu, axis=1) / np.linalg.norm(gpu, axis=1)).min() > 0.999
    if tolerance is not None:
        assert np.abs(cpu - gpu).max() < tolerance


def test_weights_are_read_from_the_transformers_folder(checkpoints: Checkpoints, as_tokens: AsTokens) -> None:
    checkpoint = Checkpoint.open(checkpoints.bare)
    assert checkpoint.folder == Path(checkpoints.bare)
    ours = Engine(checkpoint, FLOAT32).run(as_tokens([[2, 9, 3]]), ("cls",)).vectors["cls"]
    theirs = Engine(Checkpoint.open(checkpoints.sentence), FLOAT32).run(as_tokens([[2, 9, 3]]), ("cls",)).vectors["cls"]
    np.testing.assert_array_equal(ours, theirs)
