"""Bringing a checkpoint to this machine: folders, URLs and the Hub."""

import json
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.location import cache_folder, locate
from distilbeam.transforms.errors import CheckpointError, DistilbeamError, SettingsError
from tests.checkpoints import Checkpoints, edit_json
from tests.transforms.distilbert.hub import Hub, serve

EVIL = ["pytorch_model.bin", "model.pt", "training_args.bin", "modeling.py", "optimizer.pkl"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILBEAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    """A sentence-transformers folder with what must never be fetched beside it."""
    folder = shutil.copytree(checkpoints.sentence, tmp_path / "source")
    for name in EVIL:
        (folder / name).write_bytes(b"\x80evil")
    return folder


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


class Fetches:
    """Files that were fetched through fsspec."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, filesystem: type[Any]) -> None:
        self.names: list[str] = []
        self.before: Callable[[str], None] = lambda name: None
        get_file = filesystem.get_file

        def counting(this: Any, source: str, target: str, **options: Any) -> None:
            self.before(source)
            self.names.append(source.rpartition("/")[2])
            get_file(this, source, target, **options)

        monkeypatch.setattr(filesystem, "get_file", counting)


@pytest.fixture
def memory(source: Path) -> Iterator[str]:
    """The folder in memory."""
    filesystem = fsspec.filesystem("memory")
    root = f"/{uuid.uuid4().hex}"
    filesystem.put(str(source), root, recursive=True)
    yield f"memory:/{root}"
    filesystem.rm(root, recursive=True)


def test_a_folder_is_used_where_it_lies(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = locate(str(source))
    assert (found.folder, found.id, found.revision) == (source, str(source), None)
    monkeypatch.chdir(source.parent)
    assert locate("source").folder == Path("source")
    monkeypatch.setenv("HOME", str(source.parent))
    assert locate("~/source").folder == source


@pytest.mark.parametrize("model", ["/nowhere/at/all", "./nowhere", "~/nowhere", "a/b/c", "", "a b", "-a", "name@", "ü"])
def test_what_is_neither_folder_nor_hub_id_is_refused(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="there is no model folder"):
        locate(model)


def test_a_url_is_fetched_once_and_only_what_is_needed(
    memory: str, source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetches = Fetches(monkeypatch, MemoryFileSystem)
    found = locate(memory)
    assert (found.id, found.revision) == (memory, None)
    assert found.folder.is_relative_to(cache)
    kept = names(found.folder)
    assert {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"} <= kept
    assert kept < names(source)
    assert not kept & set(EVIL)
    assert (found.folder / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    count = len(fetches.names)
    assert count == len(kept)
    assert locate(memory) == found
    assert locate(memory + "/").folder == found.folder
    assert len(fetches.names) == count
    assert Checkpoint.open(memory).sentence.normalize


def test_a_changed_remote_is_fetched_anew(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = locate(memory)
    config = json.loads((before.folder / "config.json").read_text())
    changed = json.dumps(config | {"activation": "relu"})
    fsspec.filesystem("memory").pipe_file(memory.removeprefix("memory:/") + "/config.json", changed.encode())
    after = locate(memory)
    assert after.folder != before.folder
    assert (after.folder / "config.json").read_text() == changed
    assert json.loads((before.folder / "config.json").read_text()) == config


def test_a_transformer_in_a_folder_of_its_own_is_fetched(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "nested"
    shutil.copytree(checkpoints.sentence, folder / "0_Transformer")
    shutil.move(folder / "0_Transformer" / "1_Pooling", folder / "1_Pooling")
    shutil.move(folder / "0_Transformer" / "modules.json", folder / "modules.json")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "0_Transformer" / "pytorch_model.bin").write_bytes(b"\x80evil")
    found = Checkpoint.open(f"file://{folder}")
    assert (found.folder.name, found.sentence.normalize) == ("0_Transformer", True)
    assert "pytorch_model.bin" not in names(found.folder)


@pytest.mark.parametrize("error", [OSError, ConnectionError, KeyboardInterrupt])
def test_half_a_download_is_never_seen(
    memory: str, cache: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    fetches = Fetches(monkeypatch, MemoryFileSystem)
    seen: list[set[str]] = []

    def interrupt(name: str) -> None:
        seen.append({str(path) for path in (cache / "checkpoints").glob("*") if len(path.name) == 32})
        if name.endswith("model.safetensors"):
            raise error("the network went away")

    fetches.before = interrupt
    with pytest.raises(error if error is KeyboardInterrupt else CheckpointError) as caught:
        locate(memory)
    if error is not KeyboardInterrupt:
        assert f"the model '{memory}' cannot be fetched: {error.__name__}" in str(caught.value)
    assert all(not folders for folders in seen)
    assert not [path for path in (cache / "checkpoints").iterdir() if path.is_dir()]
    fetches.before = lambda name: None
    assert Checkpoint.open(memory).config.dim == 48


def test_threads_fetch_once(memory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetches = Fetches(monkeypatch, MemoryFileSystem)
    start = threading.Barrier(4)
    found: list[Path] = []

    def run() -> None:
        start.wait()
        found.append(locate(memory).folder)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(fetches.names) == len(set(names(found[0])))


_FETCH_SLOWLY = """
import json, sys, time
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from distilbeam.transforms.distilbert.location import locate

fetched, get_file = [], LocalFileSystem.get_file

def slowly(self, source, target, **options):
    time.sleep(0.05)
    fetched.append(source)
    get_file(self, source, target, **options)

LocalFileSystem.get_file = slowly
url, own, other = sys.argv[1:]
Path(own).touch()
while not Path(other).exists():
    time.sleep(0.001)
folder = locate(url).folder
print(json.dumps([str(folder), len(fetched), sorted(path.name for path in folder.iterdir())]))
"""


def test_processes_fetch_once(source: Path, tmp_path: Path) -> None:
    signals = [str(tmp_path / "one"), str(tmp_path / "two")]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _FETCH_SLOWLY, f"file://{source}", *pair], stdout=subprocess.PIPE, text=True
        )
        for pair in (signals, signals[::-1])
    ]
    results = [json.loads(process.communicate(timeout=90)[0]) for process in processes]
    assert results[0][0] == results[1][0]
    assert results[0][2] == results[1][2]
    assert sorted(count for _, count, _ in results) == [0, len(names(Path(results[0][0])))]


def test_an_object_store_is_fetched_once(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch, source: Path
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = fsspec.filesystem("s3", skip_instance_cache=True)
        type(store).clear_instance_cache()  # other tests have had other servers
        store.mkdir("models")
        store.put(str(source), "models/tiny", recursive=True)
        fetches = Fetches(monkeypatch, type(store))
        found = Checkpoint.open("s3://models/tiny")
        count = len(fetches.names)
        assert (count, found.config.dim) == (len(names(found.folder)), 48)
        assert Checkpoint.open("s3://models/tiny") == found
        assert len(fetches.names) == count
        content = (source / "config.json").read_bytes().replace(b"gelu", b"relu")
        store.pipe_file("models/tiny/config.json", content)
        assert Checkpoint.open("s3://models/tiny").config.activation == "relu"
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("memory://nothing-here", CheckpointError, "no model at 'memory://nothing-here'|cannot be listed"),
        ("file:///nowhere/at/all", CheckpointError, "no model at 'file:///nowhere/at/all'|cannot be listed"),
        ("ftp://host/model", SettingsError, "cannot use ftp://"),
        ("simplecache::memory://model", SettingsError, "chained URLs"),
        ("s3://key:secret@bucket/model", SettingsError, "holds a password"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(url: str, error: type[DistilbeamError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        locate(url)
    assert "secret" not in str(caught.value)


def test_the_cache_lies_in_the_home_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DISTILBEAM_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "distilbeam"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that huggingface_hub takes for the real one, and an empty cache."""
    from huggingface_hub import constants

    with serve() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
        yield hub


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", ["organization/model", "model-1.0"])
def test_a_model_of_the_hub_by_name_and_commit(hub: Hub, source: Path, name: str) -> None:
    old = hub.publish(name, source)
    edit_json(source / "config.json", activation="relu")
    new = hub.publish(name, source)
    found = Checkpoint.open(f"{name}@{old}")
    assert (found.id, found.revision, found.config.activation) == (name, old, "gelu")
    newest = Checkpoint.open(name)
    assert (newest.id, newest.revision, newest.config.activation) == (name, new, "relu")
    assert Checkpoint.open(f"{name}@main").revision == new
    assert found.sentence.normalize
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "modules.json", "1_Pooling/config.json"}
    assert wanted <= names(found.folder)
    assert not {path for _, path in hub.requests if any(evil in path for evil in EVIL)}


def shard(folder: Path) -> None:
    """Put the weights into two files with an index, and what old checkpoints have beside them."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {}
    for number, part in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name)
        places |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "added_tokens.json").write_text("{}")
    (folder / "special_tokens_map.json").write_text("{}")


SHARDED = {
    *("model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    *("added_tokens.json", "special_tokens_map.json"),
}


def test_weights_in_several_files_are_fetched(hub: Hub, source: Path) -> None:
    shard(source)
    hub.publish("organization/model", source)
    fetched = Checkpoint.open("organization/model")
    assert names(fetched.folder) >= SHARDED
    found = Checkpoint.open(f"file://{source}")
    assert names(found.folder) >= SHARDED
    assert found.weights_sha256 == fetched.weights_sha256 == Checkpoint.open(str(source)).weights_sha256


def test_of_weights_in_one_file_and_in_several_a_url_gives_the_one(source: Path) -> None:
    content = (source / "model.safetensors").read_bytes()
    shard(source)
    (source / "model.safetensors").write_bytes(content)
    assert not any(name.startswith("model-") for name in names(locate(f"file://{source}").folder))


def test_a_model_of_the_hub_is_fetched_once(hub: Hub, source: Path) -> None:
    commit = hub.publish("organization/model", source)
    locate(f"organization/model@{commit}")
    fetched = hub.fetched
    assert len(fetched) == len(set(fetched)) > 5
    hub.requests.clear()
    assert locate(f"organization/model@{commit}").revision == commit
    assert hub.fetched == []


def test_offline_only_what_is_cached(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.publish("organization/model", source)
    locate("organization/model")
    hub.requests.clear()
    offline(monkeypatch)
    assert Checkpoint.open(f"organization/model@{commit}").revision == commit
    assert Checkpoint.open("organization/model").revision == commit
    for model in ("organization/other", "organization/model@" + "0" * 40):
        with pytest.raises(CheckpointError, match=r"not in the cache and cannot be fetched .*HF_HUB_OFFLINE"):
            locate(model)
    assert hub.requests == []


def test_a_hub_that_is_away_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CheckpointError, match="not in the cache and cannot be fetched"):
        locate("organization/model")


def test_what_the_hub_does_not_have_is_named(hub: Hub, source: Path) -> None:
    hub.publish("organization/model", source)
    with pytest.raises(CheckpointError, match="no folder 'organization/other' here and no such model on the Hub"):
        locate("organization/other")
    for revision in ("nonsense", "0" * 40):
        with pytest.raises(CheckpointError, match=f"'organization/model' has no revision '{revision}'"):
            locate(f"organization/model@{revision}")


def test_a_file_the_hub_cannot_give_is_no_checkpoint(hub: Hub, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    commit = hub.publish("organization/model", source)
    hub.broken = {"model.safetensors"}
    with pytest.raises(CheckpointError, match="cannot be fetched"):
        locate("organization/model")
    offline(monkeypatch)
    with pytest.raises(CheckpointError):
        Checkpoint.open(f"organization/model@{commit}")


def test_a_model_of_the_hub_with_pickled_weights_only(hub: Hub, source: Path) -> None:
    (source / "model.safetensors").unlink()
    hub.publish("organization/model", source)
    with pytest.raises(CheckpointError, match=r"has no model\.safetensors"):
        Checkpoint.open("organization/model")
    assert not {path for _, path in hub.requests if any(evil in path for evil in EVIL)}


def test_the_environment_variables_of_the_hub_hold(hub: Hub, source: Path, tmp_path: Path) -> None:
    commit = hub.publish("organization/model", source)
    code = (
        "import sys\n"
        "from distilbeam.transforms.distilbert.location import locate\n"
        "from distilbeam.transforms.errors import CheckpointError\n"
        "try:\n"
        "    print(locate(sys.argv[1]).folder)\n"
        "except CheckpointError as error:\n"
        "    print(error)\n"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "NO_PROXY": "127.0.0.1"}

    def run(**more: str) -> str:
        command = [sys.executable, "-c", code, f"organization/model@{commit}"]
        done = subprocess.run(command, env=variables | more, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert "HF_HUB_OFFLINE is set" in run(HF_HUB_OFFLINE="1")
    folder = tmp_path / "home" / "hub" / "models--organization--model" / "snapshots" / commit
    assert Path(run(HF_HUB_OFFLINE="0")) == folder
    hub.requests.clear()
    assert Path(run(HF_HUB_OFFLINE="1")) == folder
    assert hub.requests == []
