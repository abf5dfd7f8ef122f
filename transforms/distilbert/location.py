"""Finding a checkpoint: a local folder, an fsspec URL or a Hub id."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from distilbeam.transforms.errors import CheckpointError, InputError
from distilbeam.transforms.storage.filesystems import FileInfo, download, list_files, resolve

from .files import MAX_SETTINGS_BYTES
from .header import MAX_WEIGHTS_BYTES
from .sentence import SENTENCE_FILES
from .sharded import INDEX, SHARD

__all__ = ["Location", "cache_folder", "locate"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_NAME = re.compile(r"([\w-][\w.-]*/)?[\w.-]+")
# All that is ever fetched; weights other than safetensors never are.
_FILES = (
    "config.json",
    "model.safetensors",
    INDEX,
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "modules.json",
    *SENTENCE_FILES,
    "config_sentence_transformers.json",
)


@dataclass(frozen=True, slots=True)
class Location:
    """A checkpoint on this machine: its folder, its name without a revision, and its commit if it has one."""

    folder: Path
    id: str
    revision: str | None = None


def locate(model: str) -> Location:
    """Bring a checkpoint to this machine.

    A remote one is fetched once per machine into ``cache_folder()`` (Hub models into the Hub's own cache, whose
    environment variables, ``HF_HUB_OFFLINE`` among them, hold) and shared by all processes.

    Raises:
        CheckpointError: it cannot be found or fetched.
    """
    if "://" in model:
        return _from_url(model)
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return Location(folder, model)
    if folder.is_file():
        raise CheckpointError(
            f"the model {model!r} is a file; give the folder that holds config.json and model.safetensors"
        )
    if model.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(model):
        raise CheckpointError(
            f"there is no model folder {model!r}; give a folder, a URL or a Hub id such as name@<commit>"
        )
    return _from_hub(model)


def cache_folder() -> Path:
    """Where fetched checkpoints lie: ``$DISTILBEAM_CACHE``, else ``~/.cache/distilbeam``."""
    return Path(os.environ.get("DISTILBEAM_CACHE") or Path.home() / ".cache" / "distilbeam")


def _from_hub(model: str) -> Location:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, revision = model.partition("@")
    # Old sentence-transformers folders hold the transformer in 0_Transformer/.
    files = (*_FILES, "model-?????-of-?????.safetensors")
    patterns = [*files, "*/config.json", *(f"*_Transformer/{file}" for file in files)]
    try:
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except RevisionNotFoundError:
        raise CheckpointError(f"the Hub's model {name!r} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder {model!r} here and no such model on the Hub (a private one needs HF_TOKEN)"
        ) from None
    except LocalEntryNotFoundError:
        raise CheckpointError(
            f"there is no folder {model!r} here, and the Hub's model of that name is not in the cache and cannot be "
            "fetched (no network, or HF_HUB_OFFLINE is set); fetch it once, or give a folder"
        ) from None
    except Exception as error:  # Of several HTTP libraries, and of the Hub's own transfer protocol.
        raise CheckpointError(f"the Hub's model {model!r} cannot be fetched: {type(error).__name__}") from None
    # A snapshot's folder is named by its commit.
    return Location(folder, name, folder.name)


def _from_url(url: str) -> Location:
    _, root = resolve(url)
    base = root.rstrip("/") + "/"
    wanted = _listed(url, base)
    if not wanted:
        raise CheckpointError(
            f"there is no model at {url!r}; give the folder that holds config.json and model.safetensors"
        )
    for name, info in wanted.items():
        most = MAX_WEIGHTS_BYTES if name.endswith(".safetensors") else MAX_SETTINGS_BYTES
        if info.size > most:
            raise CheckpointError(
                f"{info.url!r} has {info.size} bytes, of a DistilBERT's file at most {most} are fetched; take the "
                "checkpoint as it was published"
            )
    total = sum(info.size for info in wanted.values())
    if total > 2 * MAX_WEIGHTS_BYTES:
        raise CheckpointError(
            f"the files of {url!r} have {total} bytes, of a DistilBERT's at most {2 * MAX_WEIGHTS_BYTES} are fetched; "
            "take the checkpoint as it was published"
        )
    state = sorted((name, info.size, info.version) for name, info in wanted.items())
    key = hashlib.sha256(json.dumps([url.rstrip("/"), state]).encode()).hexdigest()[:32]
    target = cache_folder() / "checkpoints" / key
    if target.is_dir():
        return Location(target, url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            partial = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=target.parent))
            try:
                for name in wanted:
                    (partial / name).parent.mkdir(parents=True, exist_ok=True)
                    download(wanted[name].url, partial / name)
                if _listed(url, base) != wanted:
                    raise CheckpointError(f"the model {url!r} has changed while it was fetched; start the job again")
                partial.rename(target)
            except InputError as error:
                kind = type(error.__cause__ or error).__name__
                raise CheckpointError(f"the model {url!r} cannot be fetched: {kind}") from None
            except (OSError, ValueError) as error:
                raise CheckpointError(f"the model {url!r} cannot be fetched: {type(error).__name__}") from None
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return Location(target, url)


def _listed(url: str, base: str) -> dict[str, FileInfo]:
    """The files of a checkpoint that lie below a URL, by their names below it."""
    try:
        found = {resolve(info.url)[1].removeprefix(base): info for info in list_files(url)}
    except InputError as error:
        raise CheckpointError(f"the model {url!r} cannot be fetched: {error}") from None
    # sentence-transformers keeps settings, and in old folders the transformer, one folder down. Elsewhere than there a
    # name such as "../config.json", which an object may have, would be written.
    named = {name: name.rpartition("/") for name in found if _NAME.fullmatch(name)}
    return {
        name: found[name]
        for name, (folder, slash, file) in named.items()
        # Of weights in one file and in several, the one file is loaded.
        if file in _FILES or (SHARD.fullmatch(file) and f"{folder}{slash}model.safetensors" not in found)
    }
