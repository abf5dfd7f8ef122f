"""What lies beside data, found by a folder or a glob."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input.companions import is_companion
from distilbeam.transforms.input.planning import list_inputs
from distilbeam.transforms.input.read_settings import ReadSettings

_BESIDE = [
    *(
        "README.md",
        "README",
        "readme.txt",
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "CHANGELOG.md",
        "CITATION.cff",
        "report.pdf",
    ),
    *("index.html", "croissant.json", "dataset_infos.json", "dataset_info.json", "metadata.json", "manifest.json"),
    *(
        "day=1_$folder$",
        "Thumbs.db",
        "desktop.ini",
        "a.parquet.crc",
        "a.parquet.md5",
        "SHA256SUMS",
        "load.log",
        "load.py",
    ),
    *(
        "a.parquet.tmp",
        "notes.md",
        "stats.json",
        "state.json",
        "a.parquet.bak",
        "plot.png",
        "config.yaml",
        "checksums.txt",
        "deep/README.rst",
    ),
    *("_SUCCESS", "_metadata", "_common_metadata", ".DS_Store", ".gitattributes", ".a.parquet.crc"),
]


def _parquet(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": ["one"]}), path)


def _listed(*paths: object, **settings: str) -> list[str]:
    return [
        info.url.rpartition("/")[2] for info in list_inputs(ReadSettings([str(path) for path in paths], **settings))
    ]


@pytest.mark.parametrize("name", _BESIDE)
@pytest.mark.parametrize("pattern", ["{}", "{}/*", "{}/**"])
def test_what_lies_beside_parquet_is_passed_over_and_named_once(
    name: str, pattern: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _parquet(tmp_path / "a.parquet")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"# not data\n")
    assert _listed(pattern.format(tmp_path)) == ["a.parquet"]
    hidden = name.startswith(("_", "."))  # as Spark and Hive have it, which needs no word
    assert [name in record.getMessage() for record in caplog.records] == [True] * (not hidden)


def test_a_file_that_is_named_is_read_whatever_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "README.txt").write_text("one\n")
    (tmp_path / "metadata.json").write_text('{"text": "one"}\n')
    _parquet(tmp_path / "a.parquet")
    named = [tmp_path / "README.txt", tmp_path / "metadata.json", tmp_path / "a.parquet"]
    assert _listed(*named) == ["README.txt", "a.parquet", "metadata.json"]
    assert _listed(tmp_path / "README.*") == ["README.txt"]  # so is what a glob spells
    assert not caplog.records


def test_documents_whose_kind_the_glob_or_the_format_spells_are_read(tmp_path: Path) -> None:
    for name in ("a.md", "b.md"):
        (tmp_path / name).write_text("one\n")
    assert _listed(f"{tmp_path}/*.md", format="text") == ["a.md", "b.md"]
    assert _listed(tmp_path, format="text") == ["a.md", "b.md"]
    with pytest.raises(
        InputError, match=r"nothing but files that usually lie beside data, such as '.*a\.md'.* set `format`"
    ):
        _listed(tmp_path)


def _json(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"text": "one"}\n')


@pytest.mark.parametrize("data", ["a.jsonl", "a.json", "a.ndjson.gz", "a.parquet", "a.csv", "a.txt"])
@pytest.mark.parametrize(
    "name", ["metadata.json", "deep/info.json", "config.json", "dataset_config.json", "README.json"]
)
def test_json_of_a_name_that_tells_of_data_is_passed_over_beside_data(
    data: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / data).write_bytes(b"text\n")
    _json(tmp_path / name)
    assert _listed(tmp_path) == [data]
    assert [name in record.getMessage() for record in caplog.records] == [True]
    assert _listed(tmp_path / "**" / name.rpartition("/")[2]) == [name.rpartition("/")[2]]  # a glob may spell it


@pytest.mark.parametrize("folder", ["files", "info", "labels", "README.json"])
def test_the_name_of_a_folder_spells_no_file(folder: str, tmp_path: Path) -> None:
    for name in ("a.jsonl", "info.json"):
        _json(tmp_path / folder / name)
    assert _listed(tmp_path / folder) == ["a.jsonl"]


def test_json_of_such_names_alone_is_data(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("index.json", "deep/metadata.json"):
        _json(tmp_path / name)
    assert _listed(tmp_path) == ["metadata.json", "index.json"]
    assert not caplog.records


def test_json_beside_json_lines_is_refused_until_the_user_says_which(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.json"):
        _json(tmp_path / name)
    for pattern in (tmp_path, f"{tmp_path}/*"):
        with pytest.raises(InputError, match=r"end in \.json \('.*b\.json'\).*such as '(.*\*\.jsonl)'") as told:
            _listed(pattern)
    glob = re.search(r"such as '(.*)'", str(told.value))
    assert glob is not None
    assert _listed(glob[1]) == ["a.jsonl"]
    for both in (_listed(tmp_path, format="jsonl"), _listed(f"{tmp_path}/*.json*")):
        assert both == ["a.jsonl", "b.json"]


@pytest.mark.parametrize(
    "name", ["log.txt", "codebook.txt", "notes.txt", "vocab.txt", "labels.txt", "NOTES", "manifest"]
)
def test_texts_of_known_names_tell_of_data_of_another_format(name: str, tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet")
    (tmp_path / name).write_text("one\n")
    assert _listed(tmp_path) == ["a.parquet"]
    (tmp_path / "a.parquet").rename(tmp_path / "a.txt")
    if name.endswith(".txt") and name != "vocab.txt":  # among texts any name may be that of a document
        assert sorted(_listed(tmp_path)) == sorted(["a.txt", name])


def test_texts_of_other_names_are_refused(tmp_path: Path) -> None:
    _parquet(tmp_path / "a.parquet")
    (tmp_path / "story.txt").write_text("one\n")
    with pytest.raises(InputError, match="several formats"):
        _listed(tmp_path)


@pytest.mark.parametrize("ending", ["idx", "index", "part", "download", "lock", "swp", "orig", "crdownload", "partial"])
@pytest.mark.parametrize("data", ["a.jsonl", "a.csv.gz"])
def test_what_is_on_its_way_is_passed_over(
    ending: str, data: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (data, f"{data}.{ending}"):
        (tmp_path / name).write_text('{"text": "one"}\n')
    assert _listed(tmp_path) == [data]
    assert f"{data}.{ending}" in caplog.text


def test_two_formats_are_refused_until_the_user_says_which(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _parquet(tmp_path / "a.parquet")
    (tmp_path / "b.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "c.json.gz").write_bytes(gzip.compress(b'{"text": "one"}\n'))
    for pattern in (tmp_path, f"{tmp_path}/*", f"{tmp_path}/**"):
        with pytest.raises(
            InputError, match=r"several formats: jsonl \('.*b.jsonl'\) and parquet \('.*a.parquet'\)"
        ) as told:
            _listed(pattern)
    glob = re.search(r"such as '(.*)'", str(told.value))
    assert glob is not None
    assert len(_listed(glob[1])) in (1, 2)
    assert not caplog.records
    assert _listed(tmp_path, format="parquet") == ["a.parquet"]
    assert "b.jsonl" in caplog.text
    assert _listed(tmp_path, format="jsonl") == ["b.jsonl", "c.json.gz"]
    assert _listed(f"{tmp_path}/*.parquet", f"{tmp_path}/*.json*") == ["a.parquet", "b.jsonl", "c.json.gz"]


def test_a_format_that_no_name_tells_is_that_of_all(tmp_path: Path) -> None:
    for name in ("a.txt", "b", "c.part"):
        (tmp_path / name).write_text('{"text": "one"}\n')
    assert _listed(tmp_path, format="jsonl") == ["a.txt", "b", "c.part"]


@pytest.mark.parametrize("empty", ["part-1.parquet", "b.jsonl", "b.txt", "b.csv", "zero"])
@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl", "a.txt"])
def test_empty_files_hold_no_rows(name: str, empty: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / name).write_bytes(b"x\n")
    (tmp_path / empty).touch()
    assert _listed(tmp_path) == [name]
    assert caplog.text.count(empty) == 1
    (tmp_path / name).unlink()
    if empty != "zero":
        assert _listed(tmp_path) == [empty]  # nothing else is there, so reading says what is wrong, or has no rows


def test_a_file_of_an_unknown_kind_ends_the_job_with_a_glob_that_works(tmp_path: Path) -> None:
    _parquet(tmp_path / "deep" / "a.parquet")
    (tmp_path / "b.odd").write_text("x")
    with pytest.raises(InputError, match=r"cannot tell the format of '.*b.odd'.* glob .* such as '(.*)'") as told:
        _listed(tmp_path)
    glob = re.search(r"such as '(.*)'", str(told.value))
    assert glob is not None
    assert _listed(glob[1]) == ["a.parquet"]


def test_names_of_data_are_no_companions() -> None:
    names = (
        "a.parquet",
        "part-00000",
        "reviews.csv.gz",
        "read.jsonl",
        "licensed.parquet",
        "license.parquet",
        "notices.txt",
    )
    for name in (
        *names,
        "version2.tsv",
        "readme.csv",
        "history.jsonl",
        "success.json",
        "state.jsonl",
        "readmes.txt",
        "history.txt",
        "security.txt",
    ):
        assert not is_companion(name), name


@pytest.mark.parametrize("folder", ["readme", "license", "docs.md", "Notice"])
def test_the_name_of_a_folder_names_no_file_in_it(tmp_path: Path, folder: str) -> None:
    _parquet(tmp_path / folder / "p.parquet")
    for name in ("README.md", folder, "deep/LICENSE"):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("about")
    for path in (tmp_path / folder, tmp_path / f"{folder}*"):
        found = list_inputs(ReadSettings((str(path),)))
        assert [Path(info.url).name for info in found] == ["p.parquet"], path


def test_a_glob_that_spells_a_companion_wants_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("a document")
    (tmp_path / "b.md").write_text("another")
    found = list_inputs(ReadSettings((str(tmp_path / "*.md"),), format="text"))
    assert [Path(info.url).name for info in found] == ["README.md", "b.md"]
