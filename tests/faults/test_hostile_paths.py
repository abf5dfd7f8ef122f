"""Paths and URLs made to do harm: none leads outside, none lets a secret out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from distilbeam.pipelines.cli import main
from distilbeam.transforms.discretion import cause, masked
from distilbeam.transforms.distilbert.location import locate
from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import CheckpointError, DistilbeamError, SettingsError
from distilbeam.transforms.features import WriteFeatures
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.storage import conditional, filesystems
from distilbeam.transforms.storage.filesystems import delete, read_bytes, resolve, write_bytes

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "examples" / "distilbert-tiny-sst2")
SECRET = "zqSECRETzq"

WITH_SECRETS = [
    f"s3://key:{SECRET}@bucket/data",
    f"s3://key:{SECRET}/with/slashes@bucket/data",
    f"s3://{SECRET}@bucket/data",
    f"gs://{SECRET}@bucket/data",
    f"https://user:{SECRET}@host/data.parquet",
    f"https://host/data.parquet?sig={SECRET}",
    f"s3://bucket/data.parquet?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"s3://bucket/data.parquet?versionId=1&x-amz-security-token={SECRET}",
    f"gs://bucket/data.parquet?X-Goog-Signature={SECRET}",
    f"gs://bucket/data.parquet#access_token={SECRET}",
    f"az://container/data.parquet?sv=2024&se=1&sr=c&sig={SECRET}",
    f"abfs://container@account/data?sig={SECRET}",
    f"abfs://container:{SECRET}@account/data",
    f"hf://datasets/a/b/data?token={SECRET}",
    f"s3://bucket/data?AWSAccessKeyId=a&Signature={SECRET}",
    f"simplecache::s3://key:{SECRET}@bucket/data",
    f"filecache::https://host/x?sig={SECRET}",
    f"zip://x::https://host/a.zip?token={SECRET}",
]
ELSEWHERE = [
    "simplecache::s3://bucket/data",
    "http://169.254.169.254/latest/meta-data/iam",
    "https://host/data.parquet",
    "ftp://host/data",
    "github://org:repo@main/data",
    "reference://x",
    "s3://bucket/a/../../other/data",
    "memory://a/../b",
    "gs://bucket/..",
    "/data/a\0b",
]


@pytest.mark.parametrize("url", [*WITH_SECRETS, *ELSEWHERE])
def test_such_urls_are_refused_everywhere_before_anything_is_opened(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for use in (
        lambda: ReadDocuments(url),
        lambda: WriteFeatures(url),
        lambda: resolve(url),
        lambda: load_manifest(url),
    ):
        with pytest.raises(SettingsError) as caught:
            use()
        told = "".join(f"{error!r}{error}{error.args}" for error in _chain(caught.value))
        assert SECRET not in told
        assert "\n" not in str(caught.value)
    for option in ("--input", "--output", "--model"):
        given = {"--input": "in.jsonl", "--output": "out", "--model": MODEL, option: url}
        assert main(["embed", *(word for pair in given.items() for word in pair), "--log-level", "debug"]) == 2
        captured = capsys.readouterr()
        assert captured.err.startswith("distilbeam: error: ")
        assert SECRET not in captured.out + captured.err
    assert main(["inspect", url]) == 2
    assert SECRET not in capsys.readouterr().err


def _chain(error: BaseException | None) -> list[BaseException]:
    return [] if error is None else [error, *_chain(error.__cause__), *_chain(error.__context__)]


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/part-?.parquet", "s3://b/a=1/x", "abfs://container@account/x", "hf://gpt2@main/x", "oci://b@ns/x"],
)
def test_urls_that_only_look_alike_are_accepted(url: str) -> None:
    ReadDocuments(url)


def test_messages_of_drivers_are_masked() -> None:
    told = (
        f"Max retries exceeded with url: /c/b?sv=2024-01-01&sig={SECRET}%3D (Caused by X), "
        f"PUT https://{SECRET}@host/x?X-Amz-Signature={SECRET}&partNumber=1 failed"
    )
    assert SECRET not in masked(told)
    assert SECRET not in cause(RuntimeError(told))
    assert "Max retries exceeded" in masked(told)


@pytest.mark.parametrize(
    "call",
    [
        lambda url: conditional.create(url, b"x"),
        lambda url: conditional.replace(url, b"x", "1"),
        conditional.read,
        read_bytes,
        lambda url: write_bytes(url, b"x"),
    ],
    ids=["create", "replace", "read", "read_bytes", "write_bytes"],
)
@pytest.mark.parametrize("protocol", ["s3", "oss"])
def test_what_drivers_raise_is_masked(
    protocol: str, call: Callable[[str], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def invalidate_cache(self) -> None:
            pass

        def __getattr__(self, name: str) -> Callable[..., None]:
            return self.refuse

        def refuse(self, *_: object, **__: object) -> None:
            raise OSError(f"PUT https://key:{SECRET}@host/b?X-Amz-Signature={SECRET} was refused")

    monkeypatch.setattr(filesystems, "resolve", lambda url: (Refusing(), url))
    with pytest.raises(DistilbeamError, match="was refused") as caught:
        call(f"{protocol}://b/k")
    assert SECRET not in str(caught.value)


def test_a_store_without_credentials_is_answered_with_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n')
    for option in ("--input", "--output", "--model"):
        given = {"--input": str(tmp_path / "in.jsonl"), "--output": str(tmp_path / "out"), "--model": MODEL}
        given[option] = "s3://no-such-bucket-zq/x"
        assert main(["embed", *(word for pair in given.items() for word in pair)]) == 2
        told = capsys.readouterr().err
        assert "no valid credentials" in told
        assert "AWS_ACCESS_KEY_ID" in told
        assert told.count("\n") == 1
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "a/../../config.json", "../x/config.json"])
def test_a_store_cannot_write_outside_of_the_cache(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILBEAM_CACHE", str(tmp_path / "cache"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    for path in Path(MODEL).iterdir():
        if path.is_file():
            store.store[f"/model/{path.name}"] = _memory_file(store, path.name, path.read_bytes())
    store.store[f"/model/{name}"] = _memory_file(store, name, b"harm")
    if ".." in name:
        with pytest.raises(SettingsError, match=r"holds '\.\.'"):
            locate("memory://model")
    else:
        assert (locate("memory://model").folder / "config.json").read_bytes() != b"harm"
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    assert all(path.parent.parent == tmp_path / "cache" / "checkpoints" for path in written)
    assert not Path("/config.json").exists()
    store.store.clear()


def _memory_file(store: object, name: str, content: bytes) -> object:
    from fsspec.implementations.memory import MemoryFile

    return MemoryFile(store, name, content)


def test_a_file_too_large_is_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILBEAM_CACHE", str(tmp_path / "cache"))
    folder = shutil.copytree(MODEL, tmp_path / "model")
    with (folder / "tokenizer.json").open("ab") as file:
        file.truncate(1 << 30)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json' has 1073741824 bytes, .* at most 16777216 are"):
        locate(f"file://{folder}")
    assert not list((tmp_path / "cache").rglob("*.json"))


# None begins with a dot or an underscore, which would hide it.
NAMES = [
    "x%2f..%2fup",
    "%2e%2e",
    "a\nb",
    "a b\tc",
    "naïve ☃",
    "--flag",
    "a'b\"c",
    "{x}",
    "a=..",
    "~",
    "$HOME",
    "x" * 200,
]


def test_odd_names_of_input_stay_data(tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        folder = tmp_path / "in" / f"day={name}"
        folder.mkdir(parents=True)
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": f"the cat {number}"}) + "\n")
    out = tmp_path / "root" / "out"
    before = _tree(tmp_path)
    command = ["classify", "--model", MODEL, "--input", str(tmp_path / "in"), "--output", str(out), "--quiet"]
    assert main([*command, "--prefix", "../up/"]) == 0
    created = _tree(tmp_path) - before
    assert all(path == tmp_path / "root" or tmp_path / "root" in path.parents for path in created)
    table = pq.read_table(out)
    assert sorted(table["text"].to_pylist()) == sorted(f"the cat {number}" for number in range(len(NAMES)))
    assert "../up/label" in table.column_names
    assert all(path.name.isascii() and ".." not in path.name for path in out.rglob("*"))


def _tree(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def _job(tmp_path: Path, *flags: str) -> int:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": f"the cat {n}"}) + "\n" for n in range(9)))
    command = ["classify", "--model", MODEL, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    return main([*command, "--quiet", *flags])


def test_a_link_to_a_folder_is_deleted_and_never_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("keep")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    delete(str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "precious" / "file").read_text() == "keep"


@pytest.mark.parametrize("where", ["part", "features", "staging", "_distilbeam", "history"])
def test_links_inside_an_output_lead_to_no_harm(tmp_path: Path, where: str) -> None:
    assert _job(tmp_path) == 0
    out, precious = tmp_path / "out", tmp_path / "precious"
    precious.mkdir()
    (precious / "part-00000.parquet").write_text("keep")
    (precious / "notes.txt").write_text("keep")
    before = {path: path.read_bytes() for path in precious.iterdir()}
    if where == "part":
        (part,) = out.glob("features/*.parquet")
        part.unlink()
        part.symlink_to(precious / "part-00000.parquet")
    else:
        target = out / where if where in ("_distilbeam", "features") else out / "_distilbeam" / where
        if target.exists():
            shutil.copytree(target, precious, dirs_exist_ok=True)
            before = {path: path.read_bytes() for path in precious.rglob("*") if path.is_file()}
            shutil.rmtree(target)
        target.symlink_to(precious)
    _job(tmp_path, "--if-exists", "overwrite", "--prefix", "new_")
    for name in ("part-00000.parquet", "notes.txt"):
        assert (precious / name).read_bytes() == before[precious / name] == b"keep"


@pytest.mark.parametrize("path", ["../precious", "/etc/passwd", "a/../../precious", "sub/../../precious", "..", ""])
def test_a_manifest_that_names_files_outside_deletes_none(tmp_path: Path, path: str) -> None:
    assert _job(tmp_path) == 0
    precious = tmp_path / "precious"
    precious.write_text("keep")
    for file in (tmp_path / "out" / "_distilbeam").rglob("*.json"):
        content = file.read_text()
        (part,) = (f"features/{found.name}" for found in (tmp_path / "out").glob("features/*.parquet"))
        file.write_text(content.replace(json.dumps(part), json.dumps(path)))
    with pytest.raises(DistilbeamError):
        load_manifest(str(tmp_path / "out"))
    assert _job(tmp_path, "--if-exists", "overwrite", "--prefix", "new_") in (0, 1, 2)
    assert precious.read_text() == "keep"
    assert Path("/etc/passwd").exists()
