"""The manifest as JSON, and names of files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.manifest import (
    FileRecord,
    Manifest,
    PartRecord,
    SplitRecord,
    Statistics,
    final_record,
    find_manifest,
    fingerprint,
    load_manifest,
    save_manifest,
)

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
        rows=rows,
        rejects=rejects,
        shards=tuple(FileRecord(f"{stem}-{number:03d}.jsonl.zst", 1, 5, "x") for number in range(shards)),
        rejects_file=FileRecord(f"{stem}-rejects.parquet", rejects, 7, "y") if rejects else None,
        statistics=Statistics(10, 1, {"NEG": 1, "POS": 2}) if rows else Statistics(),
        schema=(("id", "int64"),) if rows else (),
        model=json.loads(json.dumps(_MODEL)),
        writer=_WRITER,
        fingerprint=fingerprint(split, _MODEL, _WRITER),
    )


def test_round_trip(tmp_path: Path) -> None:
    odd = replace(record(2, rows=0, rejects=0, shards=0), model={**record(0).model, "compute": {"device": "cuda"}})
    manifest = Manifest((record(0), record(1, shards=2), odd, replace(record(3, rows=0), model=None)))
    assert find_manifest(str(tmp_path)) is None
    save_manifest(str(tmp_path), manifest)
    assert load_manifest(str(tmp_path)) == find_manifest(str(tmp_path)) == manifest
    assert Manifest.from_json(manifest.to_json()).to_json() == manifest.to_json()
    document = json.loads((tmp_path / "_distilbeam" / "manifest.json").read_bytes())
    assert document["rows"] == 6
    assert document["model"] == record(0).model
    assert "model" not in document["splits"][0]
    assert document["splits"][2]["model"]["compute"] == {"device": "cuda"}


def test_sums() -> None:
    manifest = Manifest((record(2, rows=0), record(0), record(1, shards=2)))
    assert (manifest.rows, manifest.rejects, len(manifest.shards), len(manifest.files)) == (6, 3, 3 + 1, 4 + 3)
    assert manifest.statistics == Statistics(20, 2, {"NEG": 2, "POS": 4})
    assert manifest.schema == (("id", "int64"),)
    assert manifest.summary("/out")["manifest"] == "/out/_distilbeam/manifest.json"
    json.dumps(manifest.summary("/out"))
    assert Statistics() + Statistics() == Statistics()
    assert Statistics(labels={}) + Statistics() == Statistics(labels={})


def test_final_names() -> None:
    one, two = final_record(record(0)), final_record(replace(record(1, shards=2), ordinal=123456))
    print_ = record(0).fingerprint
    assert one.shards[0].path == f"part-00000-{print_}.jsonl.zst"
    assert one.rejects_file is not None
    assert one.rejects_file.path == f"_rejects/part-00000-{print_}.parquet"
    assert [shard.path[-14:] for shard in two.shards] == ["-000.jsonl.zst", "-001.jsonl.zst"]
    assert two.shards[0].path.startswith("part-123456-")
    assert final_record(two) == two
    assert final_record(replace(two, ordinal=5)).files == two.files  # what is in place is not renamed


def test_fingerprints() -> None:
    base = fingerprint("s", _MODEL, _WRITER)
    assert len(base) == 8
    assert int(base, 16) >= 0
    same = {**_MODEL, "compute": {"device": "cuda"}, "id": "elsewhere", "settings": {"a": [1, 2]}}
    assert fingerprint("s", same, dict(reversed(_WRITER.items()))) == base
    others = [
        fingerprint("t", _MODEL, _WRITER),
        fingerprint("s", {**_MODEL, "weights_sha256": "x"}, _WRITER),
        fingerprint("s", {**_MODEL, "settings": {}}, _WRITER),
        fingerprint("s", _MODEL, {**_WRITER, "max_bytes": 11}),
        fingerprint("s", None, _WRITER),
    ]
    assert len({base, *others}) == 6


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
