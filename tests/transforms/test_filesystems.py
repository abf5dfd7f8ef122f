"""Paths and URLs are refused or resolved; files appear whole or not at all."""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from fsspec.registry import _registry

from distilbeam.transforms.errors import InputError, OutputError, SettingsError
from distilbeam.transforms.storage import filesystems, urls


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
        return
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    filesystems.delete(url)


def test_files_are_written_read_moved_listed_and_deleted(root: str) -> None:
    a, b = filesystems.join(root, "deep", "a"), filesystems.join(root, "_b")
    assert filesystems.list_files(root) == []
    filesystems.write_bytes(a, b"one")
    filesystems.write_bytes(a, b"two!")
    with filesystems.create(b) as stream:
        stream.write(b"three")
    assert [(info.url, info.size) for info in filesystems.list_files(root)] == [(b, 5), (a, 4)]
    assert [info.url for info in filesystems.match_files(root)] == [a]
    assert filesystems.match_files(b) == [filesystems.file_info(b)]
    filesystems.move(a, filesystems.join(root, "new", "c"))
    assert not filesystems.exists(a)
    assert filesystems.read_bytes(filesystems.join(root, "new", "c")) == b"two!"
    with filesystems.open_input(b) as source:
        source.seek(2)
        assert source.read() == b"ree"
    filesystems.delete(filesystems.join(root, "new"))
    filesystems.delete(filesystems.join(root, "new"))
    assert [info.url for info in filesystems.list_files(root)] == [b]


def test_versions_change_with_the_file_and_not_otherwise(root: str) -> None:
    url = filesystems.join(root, "a")
    filesystems.write_bytes(url, b"one")
    version = filesystems.file_info(url).version
    assert version
    assert filesystems.file_info(url).version == filesystems.list_files(root)[0].version == version
    filesystems.write_bytes(url, b"two")
    assert filesystems.file_info(url).version != version


def test_a_failed_write_leaves_nothing(root: str) -> None:
    url = filesystems.join(root, "a")
    filesystems.write_bytes(url, b"old")

    def break_off() -> None:
        with filesystems.create(url) as stream:
            stream.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert filesystems.read_bytes(url) == b"old"
    assert [info.url for info in filesystems.list_files(root)] == [url]


def test_errors_name_the_file(root: str) -> None:
    url = filesystems.join(root, "nothing")
    for function in (filesystems.read_bytes, filesystems.open_input, filesystems.file_info, filesystems.match_files):
        with pytest.raises(InputError, match=f"{url}'"):
            function(url)


def test_what_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    filesystems.write_bytes(f"{tmp_path}/a", b"")
    with pytest.raises(OutputError, match=r"cannot write .*a/b"):
        filesystems.write_bytes(f"{tmp_path}/a/b", b"")
    with pytest.raises(OutputError, match=r"cannot move .*nothing"):
        filesystems.move(f"{tmp_path}/nothing", f"{tmp_path}/b")


def test_a_name_with_magic_in_it_is_first_taken_literally(root: str) -> None:
    for name in ("a[1].txt", "a1.txt", "b.txt"):
        filesystems.write_bytes(filesystems.join(root, name), b"")

    def names(pattern: str) -> list[str]:
        return [info.url.rpartition("/")[2] for info in filesystems.match_files(filesystems.join(root, pattern))]

    assert names("a[1].txt") == ["a[1].txt"]
    assert names("a[12].txt") == ["a1.txt"]
    assert names("?.txt") == ["b.txt"]


def test_hidden_names_are_seen_only_if_spelled_out(root: str) -> None:
    for name in ("a.txt", "_b.txt", ".c/d.txt", "_rejects/e.txt", "f/_g/h.txt"):
        filesystems.write_bytes(filesystems.join(root, name), b"")

    def names(pattern: str) -> list[str]:
        found = filesystems.match_files(filesystems.join(root, pattern))
        return [info.url.removeprefix(root).strip("/") for info in found]

    assert names("") == names("**") == names("**/*.txt") == names("*") == ["a.txt"]
    assert names("_rejects") == names("_rejects/*") == names("_rej*/*") == ["_rejects/e.txt"]
    assert names("_b.txt") == names("_*.txt") == ["_b.txt"]
    assert names("f/_g") == names("*/_g/*") == ["f/_g/h.txt"]


def test_links_stand_for_what_they_lead_to(tmp_path: Path) -> None:
    there, root = tmp_path / "there", tmp_path / "in"
    (there / "deep").mkdir(parents=True)
    root.mkdir()
    for name in ("a.jsonl", "deep/b.jsonl"):
        (there / name).write_text("{}\n")
    (root / "a.jsonl").symlink_to(there / "a.jsonl")
    (root / "folder").symlink_to(there / "deep")
    (there / "deep" / "circle").symlink_to(root)
    everything = [f"{root}/a.jsonl", f"{root}/folder/b.jsonl"]
    for pattern in (root, root / "*", tmp_path / "i*"):
        assert [info.url for info in filesystems.match_files(str(pattern))] == everything
    # A change of the file is one of the link.
    before = filesystems.match_files(str(root))[0]
    os.utime(there / "a.jsonl", (1, 1))
    for now in (filesystems.match_files(str(root))[0], filesystems.file_info(f"{root}/a.jsonl")):
        assert (now.size, now.version) == (3, "1.0")
        assert now.version != before.version
    # What may be read in an output is all seen, but nothing beyond it is taken for its own.
    assert [info.url for info in filesystems.list_files(str(root))] == [f"{root}/a.jsonl"]
    (there / "a.jsonl").unlink()
    with pytest.raises(InputError, match=r"a\.jsonl' is a link that leads to no file"):
        filesystems.match_files(str(root))


def test_an_output_beside_the_input_is_no_input(root: str) -> None:
    for name in ("a.jsonl", "features/part-0.parquet", "features/_distilbeam/manifest.json", "features2/b.jsonl"):
        filesystems.write_bytes(filesystems.join(root, name), b"{}")

    def names(folder: str) -> list[str]:
        return [info.url.removeprefix(root).strip("/") for info in filesystems.match_files(folder)]

    assert names(root) == ["a.jsonl", "features2/b.jsonl"]
    assert names(filesystems.join(root, "features")) == ["features/part-0.parquet"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "non-empty"),
        ("s3://KEY:sec/ret@bucket/a.csv", r"^the URL 's3://\*\*\*@bucket/a.csv' holds a password"),
        ("https://store.example/a.csv?signature=secret", "https:// in 'https://store.example/a.csv';"),
        ("a\0b", "NUL"),
        ("simplecache::s3://bucket/x", "chained"),
        ("s3://key:secret@bucket/x", "password"),
        ("http://169.254.169.254/latest", "cannot use http://"),
        ("reference://x", "cannot use reference://"),
        ("nosuch://x", "cannot use nosuch://"),
        ("hdfs://host/x", "cannot use hdfs://"),  # writes in place
        ("dbfs://x", "cannot use dbfs://"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        filesystems.resolve(url)
    assert "secret" not in str(caught.value)


def test_urls_that_are_not() -> None:
    for url in ("a@b:c/d", "s3://bucket/a@b:c", "abfs://container@account.dfs.core.windows.net/x", Path("x")):
        assert filesystems.check_url(url) == str(url)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [("s3://b/x", "s3fs", "s3"), ("gs://b/x", "gcsfs", "gcs"), ("az://b/x", "adlfs", "azure")],
)
def test_a_missing_driver_is_answered_with_the_command(
    url: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    for protocol in (url.partition(":")[0], "gcs", "abfs"):
        monkeypatch.delitem(_registry, protocol, raising=False)
    with pytest.raises(SettingsError, match=rf"pip install 'distilbeam\[{extra}\]'"):
        filesystems.resolve(url)


def test_azure_accounts_stay_in_the_url() -> None:
    named = urls.named("abfs://box@account.dfs.core.windows.net/in/*", "box/in/a.txt")
    assert named == "abfs://box@account.dfs.core.windows.net/in/a.txt"
