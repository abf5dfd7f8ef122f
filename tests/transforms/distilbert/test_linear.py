"""Linear layers against products in float64."""

import pytest
import torch
from torch.nn import functional

from distilbeam.transforms.distilbert import linear
from distilbeam.transforms.distilbert.linear import Linear, PrepackedLinear, RoundedLinear, exact_linear

LARGE, SMALL = (520, 300), (16, 8)


@pytest.fixture(params=[LARGE, SMALL], ids=["large", "small"])
def weight(request: pytest.FixtureRequest) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(request.param, generator=generator) / request.param[1] ** 0.5


def of(weight: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A bias and an input that suit a weight."""
    generator = torch.Generator().manual_seed(tokens)
    return torch.randn(len(weight), generator=generator), torch.randn(tokens, weight.shape[1], generator=generator)


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return x.double() @ weight.double().T + bias.double()


@pytest.mark.parametrize("kind", [Linear, PrepackedLinear, exact_linear])
@pytest.mark.parametrize("tokens", [1, 2, 31, 1000])
def test_exact_layers_give_the_product(kind: type[Linear], weight: torch.Tensor, tokens: int) -> None:
    bias, x = of(weight, tokens)
    layer, right = kind(weight, bias), product(x, weight, bias)
    torch.testing.assert_close(layer(x).double(), right, atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.gelu(x).double(), functional.gelu(right), atol=1e-5, rtol=0)


def test_what_a_layer_gives_may_be_written_to(weight: torch.Tensor) -> None:
    bias, x = of(weight, 5)
    rounded = RoundedLinear(weight.bfloat16(), bias.bfloat16())
    for layer, given in ((exact_linear(weight, bias), x), (rounded, x.bfloat16())):
        before = layer(given).clone()
        layer(given).zero_()
        assert torch.equal(layer(given), before)


def test_rounded_layers_round_as_bfloat16_does(weight: torch.Tensor) -> None:
    bias, x = of(weight, 5)
    weight, bias, x = weight.bfloat16(), bias.bfloat16(), x.bfloat16()
    rounded = RoundedLinear(weight, bias)(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded, product(x, weight, bias).bfloat16(), atol=0, rtol=2**-8)


def test_rounded_layers_of_few_inputs_are_exactly_bfloat16() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(8, 16, generator=generator).bfloat16(), torch.randn(8, generator=generator).bfloat16()
    x = torch.randn(5, 16, generator=generator).bfloat16()
    assert torch.equal(RoundedLinear(weight, bias)(x), product(x, weight, bias).bfloat16())


def test_bfloat16_with_its_own_gelu(weight: torch.Tensor) -> None:
    bias, x = of(weight, 33)
    weight, bias, x = weight.bfloat16(), bias.bfloat16(), x.bfloat16()
    layer = exact_linear(weight, bias)
    if len(weight) == LARGE[0]:
        assert isinstance(layer, PrepackedLinear) == torch.ops.mkldnn._is_mkldnn_bf16_supported()
    found = layer.gelu(x)
    assert found.dtype == torch.bfloat16
    right = functional.gelu(product(x, weight, bias))
    assert float((found.double() - right).norm() / right.norm()) < 2**-8


def test_a_torch_that_cannot_prepack_is_made_do_with(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.ones(LARGE)

    def missing(*_: object) -> None:
        raise AttributeError

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", missing)
    linear._prepacks.cache_clear()
    try:
        layer = exact_linear(weight, weight[:, 0])
        assert type(layer) is Linear
        assert layer(weight[:1]).tolist() == [[LARGE[1] + 1.0] * LARGE[0]]
    finally:
        linear._prepacks.cache_clear()


@pytest.mark.parametrize("method", ["__call__", "gelu"])
def test_a_torch_that_multiplies_wrongly_is_not_trusted(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    monkeypatch.setattr(PrepackedLinear, method, lambda self, x: x.new_zeros(len(x), 8))
    linear._prepacks.cache_clear()
    try:
        assert type(exact_linear(torch.ones(LARGE), torch.ones(LARGE[0]))) is Linear
    finally:
        linear._prepacks.cache_clear()
