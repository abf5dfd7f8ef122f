"""Manifests whose splits are too many for one file, and outputs whose manifest cannot be read."""

import hashlib
import itertools
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import zstandard

from distilbeam.transforms.errors import InputError, OutputError, OutputExistsError
from distilbeam.transforms.output import history, manifest, pieces, records
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.manifest import MANIFEST, Manifest, find_manifest, load_manifest
from distilbeam.transforms.storage import filesystems
from tests.outputs import SHARDS, Killed, files, forget, is_visible, mortal_process, put, resume, visible_rows
from tests.plans import Plan

PIECES = "_distilbeam/manifest/"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return Plan(lines=21)


@pytest.fixture(params=["local", "memory"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    url = str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}"
    yield url
    forget(url)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for about one split in a piece."""
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)


@pytest.fixture(scope="module")
def whole(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The manifest of an output that needs no pieces."""
    output = str(tmp_path_factory.mktemp("whole"))
    commit(output, plan.write_all(output, SHARDS))
    assert not any(path.startswith(PIECES) for path in files(output))
    assert json.loads(files(output)[MANIFEST])["version"] == 1
    return load_manifest(output)


def splits_of(found: dict[str, bytes]) -> list[dict[str, Any]]:
    """The splits as anybody can read them."""
    document = json.loads(found[MANIFEST])
    assert document["version"] == 2
    assert "splits" not in document
    splits = []
    for piece in document["pieces"]:
        data = found[piece["path"]]
        assert (len(data), hashlib.sha256(data).hexdigest()) == (piece["bytes"], piece["sha256"])
        group = json.loads(zstandard.ZstdDecompressor().decompressobj().decompress(data))
        assert len(group) == piece["splits"]
        splits += group
    return splits


def check(output: str, plan: Plan) -> None:
    """Asserts that the output is complete, and that nothing is left that it does not name."""
    found = files(output)
    splits = splits_of(found)
    named = {file["path"] for split in splits for file in (*split["shards"], split["rejects_file"]) if file}
    named |= {piece["path"] for piece in json.loads(found[MANIFEST])["pieces"]}
    assert {path for path in found if not path.startswith("_distilbeam/history/")} == {MANIFEST, *named}
    assert visible_rows(output) == plan.rows


def test_many_splits_lie_in_pieces(output: str, plan: Plan, whole: Manifest, small: None) -> None:
    commit(output, plan.write_all(output, SHARDS))
    check(output, plan)
    assert len(json.loads(files(output)[MANIFEST])["pieces"]) == len(plan.splits) > 2
    made = load_manifest(output)
    assert [record.split for record in made.records] == [record.split for record in whole.records]
    assert (made.rows, made.rejects, made.digest) == (whole.rows, whole.rejects, whole.digest)
    assert find_manifest(output) == made
    assert begin(output, "resume").commit == 1
    with pytest.raises(OutputExistsError, match="already holds an output"):
        begin(output, "error")


def test_each_commit_has_pieces_of_its_own(output: str, plan: Plan, small: None, monkeypatch: Any) -> None:
    commit(output, plan.write_all(output, SHARDS))
    first = {path for path in files(output) if path.startswith(PIECES)}
    assert resume(output, plan) == 0
    assert {path for path in files(output) if path.startswith(PIECES)} == first, "nothing was to be done"
    other = Plan(lines=30)
    commit(output, other.write_all(output, SHARDS), if_exists="overwrite")
    check(output, other)
    assert not first & files(output).keys()
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1 << 20)
    commit(output, plan.write_all(output, SHARDS), if_exists="overwrite")
    assert not any(path.startswith(PIECES) for path in files(output))
    assert load_manifest(output).commit == 3


@pytest.mark.slow
def test_a_commit_with_pieces_may_die_anywhere(output: str, plan: Plan, small: None) -> None:
    """It replaces another output, which has pieces too; every other call to the store is the last one."""
    old, new = Plan(lines=13), plan
    with mortal_process() as die_at:
        die_at(-1)
        commit(output, old.write_all(output, SHARDS))
        staged = new.write_all(output, SHARDS)
        before = files(output)
        for calls in itertools.count(0, 2):
            put(output, before)
            die_at(calls)
            try:
                base = begin(output, "overwrite")
                commit(output, staged, if_exists="overwrite", base=base)
                break
            except Killed:
                die_at(-1)
            found = files(output)
            rows = visible_rows(output)
            assert len({row["id"] for row in rows}) == len(rows)
            assert load_manifest(output).records, "what the manifest names is there to be read"
            assert MANIFEST in found
            base = begin(output, "overwrite")
            again = new.write_all(output, SHARDS)
            commit(output, again, if_exists="overwrite", base=base)
            check(output, new)
        die_at(-1)
        check(output, new)
        assert calls > 20


def test_a_reader_that_meets_the_next_commit_reads_that(
    output: str, plan: Plan, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(output, plan.write_all(output, SHARDS))
    other, read = Plan(lines=30), manifest.read_piece
    meanwhile: list[Callable[[], Any]] = [
        lambda: commit(output, other.write_all(output, SHARDS), if_exists="overwrite")
    ]

    def slow(*arguments: Any) -> Any:
        if meanwhile:
            meanwhile.pop()()
        return read(*arguments)

    monkeypatch.setattr(manifest, "read_piece", slow)
    assert load_manifest(output).commit == 2
    assert visible_rows(output) == other.rows


@pytest.mark.parametrize("harm", ["cut", "changed", "gone", "huge", "not a list"])
def test_pieces_that_are_not_as_the_manifest_says(
    output: str, plan: Plan, small: None, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit(output, plan.write_all(output, SHARDS))
    found = files(output)
    path = json.loads(found[MANIFEST])["pieces"][1]["path"]
    if harm == "cut":
        found[path] = found[path][:-1]
    elif harm == "changed":
        found[path] = found[path][:-1] + bytes([found[path][-1] ^ 1])
    elif harm == "gone":
        del found[path]
    elif harm == "huge":
        document = json.loads(found[MANIFEST])
        document["pieces"][1]["json_bytes"] = 1 << 40
        found[MANIFEST] = json.dumps(document).encode()
    else:
        data = zstandard.compress(b'{"a": 1}')
        document = json.loads(found[MANIFEST])
        new = {"bytes": len(data), "json_bytes": 8, "sha256": hashlib.sha256(data).hexdigest()}
        document["pieces"][1] |= new
        found[path], found[MANIFEST] = data, json.dumps(document).encode()
    put(output, found)
    with pytest.raises(InputError, match="no such file" if harm == "gone" else "it may be damaged"):
        load_manifest(output)
    replaced(output, plan)


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 9}', b"\xff", b" " * 5000])
def test_a_manifest_that_cannot_be_read_is_replaced_where_that_is_asked_for(
    output: str, plan: Plan, content: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit(output, plan.write_all(output, SHARDS))
    put(output, {**files(output), MANIFEST: content})
    if len(content) > 1000:
        monkeypatch.setattr(manifest, "MAX_JSON_BYTES", 1000)
        other = Plan(lines=30)
        with pytest.raises(OutputError, match="`if_exists='overwrite'` to replace the output"):
            begin(output, "resume")
        base = begin(output, "overwrite")
        commit(output, other.write_all(output, SHARDS), if_exists="overwrite", base=base)
        monkeypatch.setattr(manifest, "MAX_JSON_BYTES", 1 << 20)
        assert visible_rows(output) == other.rows
        return
    replaced(output, plan)
    assert "cannot be read; all files with names of an output are replaced" in caplog.text


def replaced(output: str, plan: Plan) -> None:
    """Asserts that a damaged output is refused but where it is to be replaced, by the same rows or by others."""
    damaged = files(output)
    for mode in ("error", "resume"):
        with pytest.raises((OutputError, InputError)):
            begin(output, mode)
    for new in (plan, Plan(lines=30)):
        put(output, damaged)
        base = begin(output, "overwrite")
        commit(output, new.write_all(output, SHARDS), if_exists="overwrite", base=base)
        assert visible_rows(output) == new.rows
        assert load_manifest(output).rows == len(new.rows)
        assert begin(output, "resume")
        named = {file.path for record in load_manifest(output).records for file in record.files}
        assert {path for path in files(output) if is_visible(path)} <= named


def test_what_is_not_ours_is_not_deleted_even_then(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    put(output, {**files(output), MANIFEST: b"{", "features/mine.parquet": b"mine"})
    with pytest.raises(OutputExistsError, match="not part of an output of distilbeam"):
        begin(output, "overwrite")
    assert files(output)["features/mine.parquet"] == b"mine"


def test_an_entry_of_the_history_that_cannot_be_read_is_no_obstacle(output: str, plan: Plan) -> None:
    commit(output, plan.write_all(output, SHARDS))
    put(output, {**files(output), "_distilbeam/history/000002.json": b"{"})
    with pytest.raises(OutputError, match=r"no entry of a history .*`if_exists='overwrite'` to replace"):
        begin(output, "resume")
    other = Plan(lines=30)
    base = begin(output, "overwrite")
    commit(output, other.write_all(output, SHARDS), if_exists="overwrite", base=base)
    assert visible_rows(output) == other.rows
    assert load_manifest(output).commit == 3


def test_a_commit_too_large_for_its_entry_is_refused_before_anything_is_visible(
    output: str, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    staged = plan.write_all(output, SHARDS)
    before = files(output)
    with monkeypatch.context() as patch:
        patch.setattr("distilbeam.transforms.output.claims.MAX_JSON_BYTES", 100)
        with pytest.raises(OutputError, match="larger `split_bytes`"):
            commit(output, staged)
    assert files(output) == before
    monkeypatch.setattr(history, "_MAX_INDENTED", 0)
    commit(output, staged)
    assert history.load_entry(output, 1).rows == len(plan.rows)


def test_a_path_of_a_piece_is_one_that_we_write() -> None:
    good = {"path": f"{PIECES}000001-00000-{'0' * 16}.json.zst", "splits": 1, "bytes": 1, "json_bytes": 1, "sha256": ""}
    assert pieces.Piece.from_dict(good).splits == 1
    for bad in ({"path": f"{PIECES}../../x.json.zst"}, {"splits": -1}, {"bytes": True}, {"sha256": None}):
        with pytest.raises((TypeError, ValueError)):
            pieces.Piece.from_dict({**good, **bad})


def test_a_split_is_as_its_dataclasses_are(plan: Plan, tmp_path: Path) -> None:
    for record in plan.write_all(str(tmp_path), SHARDS):
        values = asdict(record)
        for name in ("base", "unread", "dropped", "added"):
            del values[name]
        assert json.loads(json.dumps(record.as_dict())) == json.loads(json.dumps(values))
        assert records.SplitRecord.from_dict(json.loads(json.dumps(record.as_dict()))) == record
    assert filesystems.exists(str(tmp_path))
