"""Tensors as they are stored, as they are computed with, and what is shared."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.weights import Arithmetic, Weights
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import DIM, Checkpoints

CPU = torch.device("cpu")
FLOAT32 = Arithmetic(torch.float32, torch.float32)
WORDS = "embeddings.word_embeddings.weight"


@pytest.mark.parametrize("name", ["bare", "classifier"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_those_of_the_file(checkpoints: Checkpoints, name: str, dtype: torch.dtype) -> None:
    checkpoint = Checkpoint.open(getattr(checkpoints, name))
    stored = load_file(checkpoint.folder / "model.safetensors")
    weights = Weights(checkpoint, CPU, Arithmetic(dtype, dtype))
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
    found = Weights(checkpoint, CPU, FLOAT32).tensor(WORDS)
    assert found.dtype == torch.float32
    assert torch.equal(found, stored.float())


def test_weights_used_as_stored_are_views_of_the_file(checkpoints: Checkpoints) -> None:
    path = str(Path(checkpoints.bare, "model.safetensors").resolve())
    tensor = Weights(Checkpoint.open(checkpoints.bare), CPU, FLOAT32).tensor(WORDS)
    mapped = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(path)]
    ranges = [[int(end, 16) for end in line[0].split("-")] for line in mapped]
    assert any(start <= tensor.data_ptr() < stop for start, stop in ranges)


def test_layers_become_one_that_gives_what_they_give_side_by_side(checkpoints: Checkpoints) -> None:
    weights = Weights(Checkpoint.open(checkpoints.bare), CPU, FLOAT32)
    names = [f"transformer.layer.1.attention.{part}_lin" for part in "qkv"]
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(weights.linear(*names)(x), torch.cat([weights.linear(name)(x) for name in names], dim=1))


def test_a_head_is_of_the_dtype_of_hidden_states(checkpoints: Checkpoints) -> None:
    checkpoint = Checkpoint.open(checkpoints.classifier)
    stored = load_file(checkpoint.folder / "model.safetensors")
    head = Weights(checkpoint, CPU, Arithmetic(torch.bfloat16, torch.float32)).head("classifier")
    x = torch.randn(5, DIM, generator=torch.Generator().manual_seed(4)).bfloat16()
    right = functional.linear(x, stored["classifier.weight"].bfloat16(), stored["classifier.bias"].bfloat16())
    assert torch.equal(head(x), right)


def test_a_file_that_changed_since_it_was_verified_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.bare, tmp_path / "model")
    checkpoint = Checkpoint.open(str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(CheckpointError, match=r"model\.safetensors has changed since it was checked"):
        Weights(checkpoint, CPU, FLOAT32)
