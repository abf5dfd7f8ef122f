"""Weights in several safetensors files with an index, as save_pretrained writes large models."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from distilbeam.transforms.errors import CheckpointError

from .files import is_there, plain, read_json, shown
from .header import MAX_WEIGHTS_BYTES, Tensors, WeightsFile

__all__ = ["INDEX", "SHARD", "ShardedWeights", "find_weights"]

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")
"""Names of the files, as save_pretrained gives them."""

_MAX_SHARDS = 100
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_OTHERS = ("*.gguf", "*.onnx", "*.h5", "*.msgpack", "*.ot")


@dataclass(frozen=True, slots=True)
class ShardedWeights:
    """The files that an index names, each held to what ``WeightsFile`` is held to.

    Attributes:
        path: the index.
        files: the files in the order of their names.
        places: name of its file for every tensor.
    """

    path: Path
    files: tuple[WeightsFile, ...]
    places: dict[str, str]

    @classmethod
    def find(cls, folder: Path) -> ShardedWeights:
        """The weights that a folder's index names.

        Raises:
            CheckpointError: the index is damaged or names files elsewhere; one is not there; or they are too large.
        """
        path = folder / INDEX
        places = read_json(path).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise CheckpointError(f"{shown(path)} has no weight_map from tensors to files; copy it again")
        names = sorted(set(places.values()))
        for name in names:
            if not SHARD.fullmatch(name):
                raise CheckpointError(
                    f"{shown(path)} names the file {shown(name)}, and the files of an index are called "
                    "model-00001-of-00002.safetensors and lie beside it; take the checkpoint as it was published"
                )
        if len(names) > _MAX_SHARDS:
            raise CheckpointError(f"{shown(path)} names {len(names)} files; a DistilBERT has at most {_MAX_SHARDS}")
        for name in names:
            if not is_there(folder / name):
                raise CheckpointError(
                    f"{shown(path)} names {name}, which is not there; copy all {len(names)} files of the index"
                )
        files = tuple(WeightsFile.of(folder / name) for name in names)
        total = sum(file.state[2] for file in files)
        if total > MAX_WEIGHTS_BYTES:
            raise CheckpointError(
                f"the files of {shown(path)} have {total} bytes; a DistilBERT's weights have at most "
                f"{MAX_WEIGHTS_BYTES}"
            )
        return cls(path, files, places)

    def header(self) -> Tensors:
        """Dtype and shape of every tensor.

        Raises:
            CheckpointError: a file is damaged, or index and files do not have the same tensors in the same places.
        """
        tensors: Tensors = {}
        for file in self.files:
            found = file.header()
            for name in found:
                if self.places.get(name) != file.path.name:
                    raise CheckpointError(
                        f"{shown(file.path)} has the tensor {plain(name)}, which {self.path.name} has not or has "
                        "elsewhere; take index and files from one copy of the checkpoint"
                    )
            tensors |= found
        for name, place in self.places.items():
            if name not in tensors:
                raise CheckpointError(
                    f"{shown(self.path)} says that the tensor {plain(name)} is in {place}, and it is not; take index "
                    "and files from one copy of the checkpoint"
                )
        return tensors

    def sha256(self) -> str:
        """SHA-256 of the lines that ``sha256sum model-*-of-*.safetensors`` prints in the folder.

        Raises:
            CheckpointError: a file is no longer the one that was found.
        """
        lines = "".join(f"{file.sha256()}  {file.path.name}\n" for file in self.files)
        return hashlib.sha256(lines.encode()).hexdigest()


def find_weights(folder: Path) -> WeightsFile | ShardedWeights:
    """The weights of a folder: model.safetensors, else the files of its index; anything else, pickle above all, is not.

    Raises:
        CheckpointError: there are none, or they are no regular files or too large.
    """
    if is_there(folder / "model.safetensors"):
        return WeightsFile.of(folder / "model.safetensors")
    if is_there(folder / INDEX):
        return ShardedWeights.find(folder)
    raise CheckpointError(_missing(folder))


def _missing(folder: Path) -> str:
    """What is said of a folder without weights, by what it holds in their place."""
    names = sorted(path.name for path in folder.glob("*"))
    safe = [name for name in names if name.endswith(".safetensors")]
    if "adapter_model.safetensors" in safe or "adapter_config.json" in names:
        return (
            f"{shown(folder)} holds an adapter and no model; merge it into its base model (merge_and_unload of peft) "
            "and save that"
        )
    if any(SHARD.fullmatch(name) for name in safe):
        return f"{shown(folder)} holds its weights in several files and lacks their index, {INDEX}; copy it too"
    if safe:
        return (
            f"{shown(folder)} has no model.safetensors, but {plain(safe[0])}; if these are the weights that are meant, "
            "give the file that name in a folder of its own"
        )
    for pattern in _PICKLES:
        if next(folder.glob(pattern), None) is not None:
            return (
                f"{shown(folder)} holds its weights only as pickle, which can run code when loaded; "
                "convert them to model.safetensors (save_pretrained of transformers does) on a machine you can lose"
            )
    other = next((name for pattern in _OTHERS for name in names if Path(name).match(pattern)), None)
    but = f", but {plain(other)}" if other else ""
    return f"{shown(folder)} has no model.safetensors, the only format weights are read from{but}; convert them to it"
