"""8-bit layers against products of the same integers by numpy, and what is left exact."""

import platform
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.compute import Compute
from distilbeam.transforms.distilbert.engine import Engine
from distilbeam.transforms.distilbert.linear import Linear
from distilbeam.transforms.distilbert.quantization import Int8Linear, TrialLinear, multiplies_int8
from distilbeam.transforms.tokenization import Tokens
from tests.checkpoints import Checkpoints

INT8 = Compute("cpu", "int8", 1)

# Not where torch cannot: on the processors that int8 is for this must run, or fail.
pytestmark = pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="int8 is for x86-64")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def by_integers(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, most: int) -> np.ndarray[Any, Any]:
    """The product, with weights as integers from -``most`` to ``most`` and inputs as such from 0 to 255."""
    rows, columns = x.double().numpy(), weight.double().numpy()
    least = rows.min(1, keepdims=True)
    row_scales = (rows.max(1, keepdims=True) - least) / 255
    column_scales = np.abs(columns).max(1) / most
    inputs = np.floor((rows - least) / row_scales + 0.5).astype(np.int64)
    weights = np.rint(columns.T / column_scales).astype(np.int64)
    offsets = least * weights.sum(0) * column_scales
    return np.asarray((inputs @ weights) * row_scales * column_scales + offsets + bias.double().numpy())


def most() -> int:
    """Of weights here: 127 where sums have 32 bits, else 63."""
    return 127 if multiplies_int8(127) else 63


@pytest.mark.parametrize("tokens", [1, 7, 300])
@pytest.mark.parametrize("shape", [(8, 16), (96, 64), (64, 512)])
def test_products_are_those_of_the_integers(tokens: int, shape: tuple[int, int]) -> None:
    weight, bias, x = draw(*shape), draw(shape[0]), draw(tokens, shape[1])
    found = Int8Linear(weight, bias)(x).double().numpy()
    right = by_integers(x, weight, bias, most())
    # An input that lies between two integers may go to either in float32.
    error = np.abs(found - right)
    assert np.median(error) < 1e-5
    assert np.linalg.norm(error) < 1e-3 * np.linalg.norm(right)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_greatest_sums_do_not_overflow(sign: float) -> None:
    weight, bias = torch.full((8, 512), 3.0 * sign), torch.zeros(8)
    x = torch.full((4, 512), 2.0)
    x[:, -1] = 0
    torch.testing.assert_close(Int8Linear(weight, bias)(x), torch.full((4, 8), 6.0 * 511 * sign))


def test_inputs_that_differ_by_little() -> None:
    weight, bias, x = draw(8, 16), draw(8), 1000 + draw(20, 16) / 100
    found = Int8Linear(weight, bias)(x).double().numpy()
    # What float32 can tell of sums near 1000 x 16.
    np.testing.assert_allclose(found, by_integers(x, weight, bias, most()), atol=0.02)


@pytest.mark.parametrize("value", [0.0, 5.0, -1e6, 1e30])
def test_inputs_that_are_all_alike(value: float) -> None:
    weight, bias = draw(8, 16), draw(8)
    sums = (weight / weight.abs().amax(1, keepdim=True) * most()).round().sum(1) * weight.abs().amax(1) / most()
    torch.testing.assert_close(Int8Linear(weight, bias)(torch.full((1, 16), value)), (value * sums + bias)[None])


def test_rows_do_not_matter_to_each_other() -> None:
    layer, x = Int8Linear(draw(48, 64), draw(48)), draw(50, 64) * torch.logspace(-3, 3, 50)[:, None]
    together = layer(x)
    assert torch.equal(together, torch.cat([layer(x[row : row + 1]) for row in range(50)]))
    x[7], x[9, 3], x[11, 60] = 0, float("nan"), float("inf")
    found = layer(x)
    assert (~torch.isfinite(found)).any(1).nonzero().flatten().tolist() == [9, 11]
    kept = [row for row in range(50) if row not in (7, 9, 11)]
    assert torch.equal(found[kept], together[kept])
    assert torch.equal(found[7], layer(torch.zeros(1, 64))[0])


def test_a_zero_weight_and_a_zero_input_give_the_bias() -> None:
    bias = draw(8)
    assert torch.equal(Int8Linear(torch.zeros(8, 16), bias)(draw(3, 16)), bias.expand(3, 8))
    torch.testing.assert_close(Int8Linear(draw(8, 16), bias)(torch.zeros(3, 16)), bias.expand(3, 8))


@pytest.mark.parametrize("hidden", [torch.float32, torch.bfloat16])
def test_a_layer_on_trial_computes_exactly_and_then_settles(hidden: torch.dtype) -> None:
    weight, bias, x = draw(48, 64), draw(48), draw(200, 64).to(hidden)
    trial = TrialLinear(weight, bias, hidden)
    assert torch.equal(trial(x), functional.linear(x, weight.to(hidden), bias.to(hidden)))
    settled = trial.settled()
    assert isinstance(settled, Int8Linear)
    assert settled(x).dtype == hidden
    # One input that is ignored, and so large that the others are nothing beside it.
    x[:, 5] = 1e4
    weight[:, 5] = 0
    trial = TrialLinear(weight, bias, hidden)
    exact = trial(x)
    assert not isinstance(trial.settled(), Int8Linear)
    assert torch.equal(trial.settled()(x), exact)


@pytest.mark.parametrize(("error", "reduced"), [(0.0, True), (0.0179, True), (0.0181, False), (1.0, False)])
def test_a_layer_that_errs_by_more_than_is_documented_stays_exact(error: float, reduced: bool) -> None:
    trial = TrialLinear(draw(8, 16), draw(8), torch.float32)
    trial._error = error
    assert isinstance(trial.settled(), Int8Linear) == reduced


def test_small_inputs_and_weights_keep_their_digits() -> None:
    layer = Int8Linear(draw(8, 16) * 1e-10, torch.zeros(8))
    x = draw(20, 16) * 1e-15
    right = by_integers(x, draw(8, 16) * 1e-10, torch.zeros(8), most())
    np.testing.assert_allclose(layer(x).double().numpy() * 1e25, right * 1e25, atol=1e-2)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_trial_that_went_wrong_settles_nothing(broken: float) -> None:
    trial = TrialLinear(draw(8, 16), draw(8), torch.float32)
    assert not isinstance(trial.settled(), Int8Linear)
    trial(torch.full((2, 16), broken))
    assert not isinstance(trial.settled(), Int8Linear)


def test_all_engines_settle_alike_and_come_near(
    checkpoints: Checkpoints,
    ragged: list[list[int]],
    as_tokens: Callable[[list[list[int]]], Tokens],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = as_tokens(ragged)
    exact = Engine(Checkpoint.open(checkpoints.classifier), Compute("cpu", "float32", 1)).run(tokens, ("mean",), True)
    errors: list[float] = []
    settled = TrialLinear.settled

    def noted(trial: TrialLinear) -> Linear:
        errors.append(trial._error)
        return settled(trial)

    monkeypatch.setattr(TrialLinear, "settled", noted)
    with caplog.at_level("INFO"):
        engines = [Engine(Checkpoint.open(checkpoints.classifier), INT8) for _ in range(2)]
    told = [record.getMessage() for record in caplog.records if "linear layers" in record.getMessage()]
    assert told[0] == told[1]
    assert told[0].startswith("int8 in 8 of 8 ")
    assert engines[0].description == {
        **{"device": "cpu", "dtype": "int8", "threads": 1},
        **{"int8_layers": 8, "linear_layers": 8, "weight_bits": 8 if most() == 127 else 7},
    }
    assert len(errors) == 16
    assert errors[:8] == errors[8:]
    first, second = (engine.run(tokens, ("mean",), True) for engine in engines)
    assert not first.failed
    np.testing.assert_array_equal(first.vectors["mean"], second.vectors["mean"])
    a, b = exact.vectors["mean"], first.vectors["mean"]
    assert not np.array_equal(a, b)
    assert ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min() > 0.995
    assert exact.scores is not None
    assert first.scores is not None
    assert np.abs(exact.scores - first.scores).max() < 0.1
