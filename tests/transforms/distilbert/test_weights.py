"""Tensors as they are stored, as they are computed with, and what is shared."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.weights import Linear, Weights
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import Checkpoints

CPU = torch.device("cpu")
WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("name", ["bare", "classifier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_those_of_the_file(checkpoints: Checkpoints, name: str, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(getattr(checkpoints, name))
    stored = load_file(checkpoint.folder / "model.safetensors")
    weights = Weights(checkpoint, CPU, dtype)
    for tensor in checkpoint.config.encoder_shapes():
        found = weights.tensor(tensor)
        assert found.dtype == dtype
        assert torch.equal(found, stored[checkpoint.prefix + tensor].to(dtype))
    if checkpoint.labels:
        assert torch.equal(weights.tensor("classifier.bias", encoder=False), stored["classifier.bias"].to(dtype))


def test_stored_float16_is_computed_in_float32(checkpoints: Checkpoints) -> None:
    checkpoint = Checkpoint.open(checkpoints.half)
    stored = load_file(checkpoint.folder / "model.safetensors")[WORDS]
    assert stored.dtype == torch.float16
    found = Weights(checkpoint, CPU, torch.float32).tensor(WORDS)
    assert found.dtype == torch.float32
    assert torch.equal(found, stored.float())


def test_weights_used_as_stored_are_views_of_the_file(checkpoints: Checkpoints) -> None:
    path = str(Path(checkpoints.bare, "model.safetensors").resolve())
    tensor = Weights(Checkpoint.open(checkpoints.bare), CPU, torch.float32).tensor(WORDS)
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in mapped]
    assert any(start <= tensor.data_ptr() < stop for start, stop in ranges)


def test_widened_layers_round_as_bfloat16_does() -> None:
    generator = torch.Generator().manual_seed(4)
    weight, bias = torch.randn(8, 16, generator=generator), torch.randn(8, generator=generator)
    x = torch.randn(5, 16, generator=generator).bfloat16()
    widened = Linear(weight.bfloat16().float(), bias.bfloat16().float())(x)
    assert widened.dtype == torch.bfloat16
    exact = x.double() @ weight.bfloat16().double().T + bias.bfloat16().double()
    assert torch.equal(widened, exact.bfloat16())


def test_fused_layers_are_the_layers_side_by_side() -> None:
    generator = torch.Generator().manual_seed(4)
    layers = [Linear(torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)) for _ in range(3)]
    x = torch.randn(5, 6, generator=generator)
    torch.testing.assert_close(Weights.fuse(layers)(x), torch.cat([layer(x) for layer in layers], dim=1))


def test_a_file_that_changed_since_it_was_verified_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.bare, tmp_path / "model")
    checkpoint = Checkpoint.open(str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since it was checked"):
        Weights(checkpoint, CPU, torch.float32)
