"""The manifest as JSON, and names of files."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.output.manifest import (
    MANIFEST,
    FileRecord,
    Manifest,
    PartRecord,
    SplitRecord,
    Statistics,
    feature_columns,
    final_record,
    find_manifest,
    fingerprint,
    load_manifest,
    read_json,
)
from distilbeam.transforms.storage import filesystems

_MODEL = {
    "id": "m",
    "weights_sha256": "w",
    "tokenizer_sha256": "t",
    "settings": {"a": (1, 2)},
    "compute": {"device": "cpu"},
}
_WRITER = {"format": "parquet", "compression": "zstd", "max_bytes": 10}


def record(ordinal: int, rows: int = 3, rejects: int = 1, shards: int = 1) -> SplitRecord:
    split = f"{ordinal:032x}"
    stem = f"_distilbeam/staging/{split}-abc"
    return SplitRecord(
        split=split,
        ordinal=ordinal,
        splits=4,
        parts=(PartRecord("/é.jsonl", rows + rejects, rows + rejects + 1, ordinal > 0),),
        reading="r",
        shards=tuple(
            FileRecord(f"{stem}-{number:03d}.jsonl.zst", 1 if number else rows - shards + 1, 5, "x")
            for number in range(shards if rows else 0)
        ),
        rejects_file=FileRecord(f"{stem}-rejects.parquet", rejects, 7, "y") if rejects else None,
        statistics=Statistics(10, 1, {"NEG": 1, "POS": 2}) if rows else Statistics(),
        schema=(("id", "int64"),) if rows else (),
        models=(json.loads(json.dumps(_MODEL)),),
        writer=_WRITER,
    )


def test_round_trip(tmp_path: Path) -> None:
    elsewhere = {**record(0).models[0], "compute": {"device": "cuda"}}
    odd = replace(record(2, rows=0, rejects=0), models=(elsewhere,))
    records = (record(0), record(1, shards=2), odd, replace(record(3, rows=0), models=()))
    manifest = Manifest(tuple(map(final_record, records)), commit=7)
    assert find_manifest(str(tmp_path)) is None
    filesystems.write_bytes(str(tmp_path / MANIFEST), manifest.to_json())
    assert load_manifest(str(tmp_path)) == find_manifest(str(tmp_path)) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()
    document = json.loads((tmp_path / "_distilbeam" / "manifest.json").read_bytes())
    assert document["rows"] == 6
    assert document["models"] == list(record(0).models)
    assert "models" not in document["splits"][0]
    assert document["splits"][2]["models"][0]["compute"] == {"device": "cuda"}
    assert document["computes"] == [
        {"stage": 0, "device": "cpu", "splits": 2},
        {"stage": 0, "device": "cuda", "splits": 1},
    ]


def test_sums() -> None:
    manifest = Manifest((record(2, rows=0), record(0), record(1, shards=2)))
    assert (manifest.rows, manifest.rejects, len(manifest.shards), len(manifest.files)) == (6, 3, 3, 3 + 3)
    assert manifest.statistics == Statistics(20, 2, {"NEG": 2, "POS": 4})
    assert manifest.schema == (("id", "int64"),)
    assert manifest.summary("/out")["manifest"] == "/out/_distilbeam/manifest.json"
    json.dumps(manifest.summary("/out"))
    assert Statistics() + Statistics() == Statistics()
    assert Statistics(labels={}) + Statistics() == Statistics(labels={})


def test_final_names() -> None:
    one, two = final_record(record(0)), final_record(replace(record(1, shards=2), ordinal=123456))
    contents = json.dumps([record(0).fingerprint, *(file.sha256 for file in record(0).files)])
    print_ = hashlib.sha256(contents.encode()).hexdigest()[:8]
    assert one.shards[0].path == f"features/part-00000-{print_}.jsonl.zst"
    assert one.rejects_file is not None
    assert one.rejects_file.path == f"_rejects/part-00000-{print_}.parquet"
    assert [shard.path[-14:] for shard in two.shards] == ["-000.jsonl.zst", "-001.jsonl.zst"]
    assert two.shards[0].path.startswith("features/part-123456-")
    changed = replace(record(0), shards=(replace(record(0).shards[0], sha256="other"),))
    assert final_record(changed).shards[0].path != one.shards[0].path
    assert final_record(two) == two
    assert final_record(replace(two, ordinal=5)).files == two.files  # what is in place is not renamed


def test_fingerprints() -> None:
    base = fingerprint("s", [_MODEL], _WRITER)
    assert len(base) == 8
    assert int(base, 16) >= 0
    same = {**_MODEL, "compute": {"device": "cuda"}, "id": "elsewhere", "settings": {"a": [1, 2]}}
    assert fingerprint("s", [same], dict(reversed(_WRITER.items()))) == base
    others = [
        fingerprint("t", [_MODEL], _WRITER),
        fingerprint("s", [{**_MODEL, "weights_sha256": "x"}], _WRITER),
        fingerprint("s", [{**_MODEL, "settings": {}}], _WRITER),
        fingerprint("s", [_MODEL], {**_WRITER, "max_bytes": 11}),
        fingerprint("s", [], _WRITER),
        fingerprint("s", [_MODEL, _MODEL], _WRITER),
        fingerprint("s", [_MODEL, {**_MODEL, "weights_sha256": "x"}], _WRITER),
        fingerprint("s", [{**_MODEL, "weights_sha256": "x"}, _MODEL], _WRITER),
    ]
    assert len({base, *others}) == 9


def test_features_are_those_that_a_model_has_added() -> None:
    first = {"settings": {"features": ["embedding", "score"], "prefix": "a_"}}
    second = {"settings": {"features": ["input_ids", "score"], "prefix": ""}}
    names = ["label", "embedding", "a_embedding", "a_token_count", "token_count", "input_ids", "score"]
    assert feature_columns([first, second], names) == {
        "embedding": "a_embedding",
        "token_count": "a_token_count",
        "input_ids": "input_ids",
        "score": "score",
    }
    assert feature_columns([], names) == {}


def test_only_what_is_not_there_is_taken_for_nothing(tmp_path: Path) -> None:
    url = str(tmp_path / "a.json")
    assert read_json(url) is None
    (tmp_path / "a.json").write_text("{")
    assert read_json(url) is None
    (tmp_path / "a.json").write_text("[1]")
    assert read_json(url) == [1]

    with pytest.raises(InputError, match="IsADirectoryError"):
        read_json(str(tmp_path))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"{}", b'{"version": 2, "splits": []}', b'{"version": 1, "splits": [{}]}', b"\xff"]
)
def test_damaged_manifests(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_distilbeam").mkdir()
    (tmp_path / "_distilbeam" / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"no manifest that this version"):
        load_manifest(str(tmp_path))


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        load_manifest(str(tmp_path))
