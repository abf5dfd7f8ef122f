"""Weights in several files give what they give in one; index and files are held to each other."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification

from distilbeam.transforms import Encoder
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import Checkpoints, edit_json, edit_tensors

INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """The classifier as save_pretrained writes it in pieces."""
    target = Path(shutil.copytree(checkpoints.classifier, tmp_path / "model"))
    (target / "model.safetensors").unlink()
    AutoModelForSequenceClassification.from_pretrained(checkpoints.classifier).save_pretrained(
        target, max_shard_size="60KB"
    )
    assert not (target / "model.safetensors").exists()
    assert len(list(target.glob("model-*.safetensors"))) > 1
    return target


def test_it_is_the_model_in_one_file(checkpoints: Checkpoints, folder: Path) -> None:
    texts = ["the cat sat", "", "good film!"]
    one, several = (
        Encoder.load(str(path), device="cpu", dtype="float32", threads=1) for path in (checkpoints.classifier, folder)
    )
    np.testing.assert_array_equal(several.embed(texts), one.embed(texts))
    assert several.classify(texts) == one.classify(texts)


def test_its_digest_is_that_of_what_sha256sum_prints(folder: Path) -> None:
    printed = subprocess.run("sha256sum model-*.safetensors", shell=True, cwd=folder, capture_output=True, check=True)
    digest = hashlib.sha256(printed.stdout).hexdigest()
    assert Checkpoint.open(str(folder)).weights_sha256 == digest
    assert Checkpoint.open(str(folder), digest).weights_sha256 == digest
    with pytest.raises(CheckpointError, match="but `model_sha256` pins"):
        Checkpoint.open(str(folder), "0" * 64)
    found = Checkpoint.open(str(folder))
    shard = sorted(folder.glob("model-*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes())
    with pytest.raises(CheckpointError, match="has changed since it was checked"):
        _ = found.weights_sha256


def _map(change: Callable[[dict[str, str]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        places = json.loads((folder / INDEX).read_text())["weight_map"]
        change(places)
        edit_json(folder / INDEX, weight_map=places)

    return damage


def _first(places: dict[str, str], name: str) -> None:
    places[next(iter(places))] = name


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a file above": (_map(lambda places: _first(places, "../model-00001-of-00002.safetensors")), "names the file '../"),
    "an absolute file": (_map(lambda places: _first(places, "/etc/passwd")), "names the file '/etc/passwd'"),
    "a pickle": (_map(lambda places: _first(places, "pytorch_model.bin")), "names the file 'pytorch_model.bin'"),
    "no text": (_map(lambda places: places.update(x=3)), "has no weight_map"),
    "no tensors": (_map(lambda places: places.clear()), "has no weight_map"),
    "a tensor too many": (_map(lambda places: places.update(x=next(iter(places.values())))), "the tensor x is in"),
    "a tensor too few": (_map(lambda places: places.pop(next(iter(places)))), "which .* has not or has elsewhere"),
    "a tensor elsewhere": (_map(lambda places: _first(places, list(places.values())[-1])), "has not or has elsewhere"),
    "a file of many": (
        _map(lambda places: places.update({f"x{n}": f"model-{n:05}-of-00200.safetensors" for n in range(200)})),
        "at most 100",
    ),
    "a file is missing": (lambda folder: sorted(folder.glob("model-*"))[0].unlink(), "which is not there; copy all"),
    "a file is cut": (
        lambda folder: sorted(folder.glob("model-*"))[0].write_bytes(b"x" * 60),
        "not a whole safetensors",
    ),
    "no index": (lambda folder: (folder / INDEX).unlink(), r"lacks their index, model\.safetensors\.index\.json"),
    "index is no JSON": (lambda folder: (folder / INDEX).write_text("{"), "is not valid JSON"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_what_does_not_fit_together_is_refused(folder: Path, case: str) -> None:
    damage, message = DAMAGES[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.fp16.safetensors", r"has no model\.safetensors, but model\.fp16\.safetensors; if these are"),
        ("adapter_model.safetensors", "holds an adapter and no model; merge it"),
        ("model.onnx", r"but model\.onnx; convert them"),
        ("tf_model.h5", r"but tf_model\.h5; convert them"),
    ],
)
def test_weights_of_other_names_are_named(checkpoints: Checkpoints, tmp_path: Path, name: str, message: str) -> None:
    folder = shutil.copytree(checkpoints.bare, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 90000\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, "is a Git LFS pointer, .*; run 'git lfs pull'"),
        ("<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is an HTML page"),
        ('{"error": "Repository not found"}', "is an error message of a server"),
    ],
)
def test_what_lies_in_the_place_of_a_file_is_named(
    checkpoints: Checkpoints, tmp_path: Path, name: str, content: str, message: str
) -> None:
    folder = shutil.copytree(checkpoints.bare, tmp_path / "model")
    (folder / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{name}.* {message}".replace(".json", r"\.json")):
        Checkpoint.open(str(folder))


def test_a_pointer_among_the_files_of_an_index_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("model-*"))[1]
    shard.write_text(POINTER)
    with pytest.raises(CheckpointError, match=f"{shard.name} is a Git LFS pointer"):
        Checkpoint.open(str(folder))


def test_tensors_are_held_to_the_config(folder: Path) -> None:
    shard = next(
        path
        for path in folder.glob("model-*")
        if "distilbert.embeddings.LayerNorm.bias" in path.read_bytes().decode("latin-1")
    )
    edit_tensors(shard, distilbert__embeddings__LayerNorm__bias=None)
    _map(lambda places: places.pop("distilbert.embeddings.LayerNorm.bias"))(folder)
    with pytest.raises(CheckpointError, match=rf"{INDEX} lacks the tensor distilbert\.embeddings\.LayerNorm\.bias"):
        Checkpoint.open(str(folder))
