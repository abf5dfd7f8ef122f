"""Table folders, against what the library of each table reads itself."""

from __future__ import annotations

import builtins
import json
import logging
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import DataScan, FileScanTask, Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import IntegerType, LongType, NestedField, StringType

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.input import delta
from distilbeam.transforms.input.planning import list_inputs, plan_splits
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.reading import read_split
from distilbeam.transforms.input.tables import plain_schema
from distilbeam.transforms.provenance import ROW
from distilbeam.transforms.storage import filesystems
from distilbeam.transforms.storage.filesystems import FileInfo

_ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int64()), "text": ["one", "two", "three"]})
_MORE = pa.table({"id": pa.array([4, 5], pa.int64()), "text": ["four", "five"]})


def _read(*paths: str | Path, **settings: Any) -> pa.Table:
    reading = ReadSettings([str(path) for path in paths], **settings)
    batches = [
        batch.replace_schema_metadata() for split in plan_splits(reading) for batch in read_split(split, reading)
    ]
    return pa.Table.from_batches(batches).drop([ROW])


def _same(found: pa.Table, expected: pa.Table) -> None:
    def rows(table: pa.Table) -> list[str]:
        return sorted(repr(sorted(row.items())) for row in table.to_pylist())

    assert set(found.column_names) == set(expected.column_names)
    assert rows(found) == rows(expected)


def _delta(root: str) -> pa.Table:
    return DeltaTable(root).to_pyarrow_table()


def _appended(root: str) -> None:
    write_deltalake(root, _ROWS)
    write_deltalake(root, _MORE, mode="append")


def _deleted(root: str) -> None:
    _appended(root)
    DeltaTable(root).delete("id = 2 or id = 4")


def _overwritten(root: str) -> None:
    _appended(root)
    write_deltalake(root, _MORE, mode="overwrite")


def _updated(root: str) -> None:
    _appended(root)
    DeltaTable(root).update(predicate="id = 3", updates={"text": "'new'"})


def _compacted(root: str) -> None:
    _deleted(root)
    DeltaTable(root).optimize.compact()
    DeltaTable(root).create_checkpoint()
    write_deltalake(root, _MORE, mode="append")


def _restored(root: str) -> None:
    _overwritten(root)
    DeltaTable(root).restore(0)


def _evolved(root: str) -> None:
    _appended(root)
    write_deltalake(root, _MORE.append_column("stars", pa.array([1.5, None])), mode="append", schema_mode="merge")
    DeltaTable(root).delete("stars is not null")


def _only_new_column_gone(root: str) -> None:
    _evolved(root)
    DeltaTable(root).delete("id > 3")  # no file is left that has the column


def _partitioned(root: str) -> None:
    days = pa.array([0, 1, None], pa.int32()).cast(pa.date32())
    table = _ROWS.append_column("day", days).append_column("_kind", pa.array(["a b", "c/d=e%", "ü"]))
    table = table.append_column("number", pa.array([7, None, -1], pa.int32()))
    write_deltalake(root, table, partition_by=["day", "_kind", "number"])
    DeltaTable(root).delete("id = 2")


@pytest.mark.parametrize(
    "make",
    [_appended, _deleted, _overwritten, _updated, _compacted, _restored, _evolved, _only_new_column_gone, _partitioned],
)
def test_a_delta_table_gives_the_rows_of_its_newest_version(make: Callable[[str], None], tmp_path: Path) -> None:
    root = str(tmp_path / "table")
    make(root)
    found, expected = _read(root), _delta(root)
    _same(found, expected)
    for name in expected.column_names:
        assert found.schema.field(name).type == pa.schema(expected.schema).field(name).type


@pytest.mark.parametrize("pattern", ["{lake}", "{lake}/*", "{lake}/*/*.parquet", "{lake}/**/*.parquet", "{lake}/**"])
def test_tables_below_the_input_are_read_as_tables(pattern: str, tmp_path: Path) -> None:
    lake = tmp_path / "lake"
    for name in ("a", "b"):
        _deleted(str(lake / name))
    (lake / "plain").mkdir()
    pq.write_table(_ROWS, lake / "plain" / "x.parquet")
    expected = pa.concat_tables([_delta(str(lake / "a")), _delta(str(lake / "b")), _ROWS])
    _same(_read(pattern.format(lake=lake)), expected)


def test_a_folder_inside_of_a_table_gives_its_live_rows(tmp_path: Path) -> None:
    root = str(tmp_path / "table")
    write_deltalake(root, _ROWS.append_column("k", pa.array(["x", "y", "x"])), partition_by=["k"])
    DeltaTable(root).delete("id = 1")
    _same(_read(f"{root}/k=x"), _delta(root).filter(pa.compute.equal(_delta(root)["k"], "x")))


def test_a_glob_that_spells_the_table_reads_what_lies_there_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = str(tmp_path / "table")
    _deleted(root)
    raw = pa.concat_tables([pq.read_table(file, schema=_ROWS.schema) for file in Path(root).glob("*.parquet")])
    _same(_read(f"{root}/*.parquet"), raw)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert re.search("Delta table .* deleted", caplog.text)


def test_a_delta_table_on_a_store_is_read_by_our_own_driver(tmp_path: Path) -> None:
    _partitioned(str(tmp_path / "table"))
    for info in filesystems.list_files(str(tmp_path)):
        there = "memory://tables" + info.url.removeprefix(str(tmp_path))
        filesystems.write_bytes(there, filesystems.read_bytes(info.url))
    try:
        _same(_read("memory://tables/table"), _delta(str(tmp_path / "table")))
        _same(_read("memory://tables"), _delta(str(tmp_path / "table")))
    finally:
        filesystems.delete("memory://tables")


@pytest.mark.parametrize("checkpoints", [(), (3,), (1, 4), (5,)])
def test_no_more_of_a_log_is_fetched_than_its_newest_version_takes(
    checkpoints: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(tmp_path / "table")
    for version in range(6):
        write_deltalake(root, _MORE.slice(version % 2, 1), mode="append")
        if version == 2:
            DeltaTable(root).delete("id = 4")
        if DeltaTable(root).version() in checkpoints:
            DeltaTable(root).create_checkpoint()
    fetched: list[str] = []

    def noted(url: str, path: Any, download: Any = delta.download) -> None:
        fetched.append(url.rpartition("/")[2])
        download(url, path)

    monkeypatch.setattr(delta, "download", noted)
    for info in filesystems.list_files(root):
        filesystems.write_bytes("memory://long" + info.url.removeprefix(root), filesystems.read_bytes(info.url))
    try:
        _same(_read("memory://long"), _delta(root))
    finally:
        filesystems.delete("memory://long")
    last = max(checkpoints, default=0)
    expected = [f"{version:020}.json" for version in range(last, DeltaTable(root).version() + 1)]
    if checkpoints:
        expected.append(f"{last:020}.checkpoint.parquet")
    assert sorted(fetched) == sorted(expected)


def _log(*names: str, size: int = 10) -> dict[str, FileInfo]:
    return {name: FileInfo(f"s3://t/_delta_log/{name}", size, "") for name in names}


def test_a_checkpoint_that_lacks_a_part_or_needs_other_files_is_not_gone_by() -> None:
    commits = [f"{version:020}.json" for version in range(5)]
    first = f"{1:020}.checkpoint.parquet"
    parts = [f"{3:020}.checkpoint.{n:010}.{2:010}.parquet" for n in (1, 2)]
    assert set(delta.newest("t", _log(*commits, first, *parts))) == {*commits[3:], *parts}
    assert set(delta.newest("t", _log(*commits, first, parts[1]))) == {*commits[1:], first}
    beside = [f"{3:020}.checkpoint.0a1b2c3d-0000-4000-8000-000000000000.json", "_sidecars/0a1b.parquet"]
    everything = _log(*commits, first, *beside)
    assert delta.newest("t", everything) == everything


@pytest.mark.parametrize(("count", "size"), [(1, (256 << 20) + 1), (17, 256 << 20), (20_001, 1)])
def test_a_log_that_is_too_large_is_refused_before_it_is_fetched(count: int, size: int) -> None:
    names = [f"{version:020}.json" for version in range(count)]
    with pytest.raises(InputError, match="more than"):
        delta.newest("t", _log(*names, size=size))
    assert delta.newest("t", _log(*names, f"{count:020}.checkpoint.parquet"))


def test_a_file_that_the_log_names_and_that_is_not_there_is_named(tmp_path: Path) -> None:
    _appended(str(tmp_path))
    gone = next(tmp_path.glob("*.parquet"))
    gone.unlink()
    with pytest.raises(InputError, match=rf"Delta table .*version 1 has a file .*{gone.name}.*not there"):
        _read(tmp_path)


def test_a_table_without_rows_is_named(tmp_path: Path) -> None:
    _appended(str(tmp_path))
    DeltaTable(str(tmp_path)).delete()
    with pytest.raises(InputError, match=r"Delta table .* has no rows in its version 2"):
        _read(tmp_path)


def test_a_format_that_no_table_has_is_refused(tmp_path: Path) -> None:
    _appended(str(tmp_path))
    with pytest.raises(InputError, match=r"Delta table, which holds Parquet; leave out `format`"):
        _read(tmp_path, format="jsonl")


def _logged(root: Path, protocol: dict[str, Any], configuration: dict[str, str], mapped: bool, **add: Any) -> None:
    """A table as other writers make it, of features that the library here does not write."""
    (root / "_delta_log").mkdir(parents=True)
    pq.write_table(_ROWS, root / "a.parquet")
    mapping = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "text"} if mapped else {}
    fields = [{"name": "text", "type": "string", "nullable": True, "metadata": mapping}]
    schema = json.dumps({"type": "struct", "fields": fields})
    size = (root / "a.parquet").stat().st_size
    actions: list[dict[str, Any]] = [
        {"protocol": protocol},
        {
            "metaData": {
                "id": "t",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": schema,
                "partitionColumns": [],
                "configuration": configuration,
            }
        },
        {
            "add": {"path": "a.parquet", "partitionValues": {}, "size": size, "modificationTime": 0, "dataChange": True}
            | add
        },
    ]
    (root / "_delta_log" / f"{0:020}.json").write_text("".join(json.dumps(action) + "\n" for action in actions))


_VECTOR = {"storageType": "i", "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L", "offset": 1}


@pytest.mark.parametrize(
    ("features", "configuration", "add", "said"),
    [
        (
            ["deletionVectors"],
            {},
            {"deletionVector": _VECTOR | {"sizeInBytes": 40, "cardinality": 2}},
            "deletion vectors",
        ),
        (["columnMapping"], {"delta.columnMapping.mode": "name"}, {}, "column mapping by name"),
        (["flyingColumns"], {}, {}, "flyingColumns"),
    ],
)
def test_a_feature_that_is_not_read_is_refused_by_name(
    features: list[str], configuration: dict[str, str], add: dict[str, Any], said: str, tmp_path: Path
) -> None:
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    _logged(tmp_path / "t", protocol, configuration, "columnMapping" in features, **add)
    with pytest.raises(InputError, match=f"Delta table.*{said}"):
        _read(tmp_path / "t")


def test_a_feature_that_is_on_and_not_made_use_of_is_no_hindrance(tmp_path: Path) -> None:
    features = {"readerFeatures": ["deletionVectors"], "writerFeatures": ["deletionVectors"]}
    _logged(tmp_path / "t", {"minReaderVersion": 3, "minWriterVersion": 7} | features, {}, False)
    assert _read(tmp_path / "t")["text"].to_pylist() == _ROWS["text"].to_pylist()


@pytest.mark.parametrize(
    ("kind", "marker"),
    [
        ("Hudi", ".hoodie/hoodie.properties"),
        ("Lance", "_versions/1.manifest"),
        ("Paimon", "snapshot/snapshot-1"),
        ("Delta", "_delta_log/00000000000000000000.json"),
        ("Iceberg", "metadata/v1.metadata.json"),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_a_table_that_cannot_be_read_is_refused_by_name(
    kind: str, marker: str, nested: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "lake" / "t"
    (root / marker).parent.mkdir(parents=True)
    (root / marker).write_bytes(b"{}")
    pq.write_table(_ROWS, root / "a.parquet")
    for module in ("delta", "iceberg"):
        monkeypatch.delitem(sys.modules, f"distilbeam.transforms.input.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "deltalake", None)
    monkeypatch.setitem(sys.modules, "pyiceberg.io", None)
    cure = rf"pip install 'distilbeam\[{kind.lower()}\]'" if kind in ("Delta", "Iceberg") else "export it to Parquet"
    with pytest.raises(InputError, match=f"{kind} table.*{cure}"):
        _read(root.parent if nested else root)
    assert _read(f"{root}/*.parquet").num_rows == 3  # the cure


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> SqlCatalog:
    folder = tmp_path_factory.mktemp("iceberg")
    catalog = SqlCatalog("c", uri=f"sqlite:///{folder}/catalog.db", warehouse=f"file://{folder}/warehouse")
    catalog.create_namespace("n")
    return catalog


@pytest.fixture
def iceberg(catalog: SqlCatalog, request: pytest.FixtureRequest) -> Table:
    table = catalog.create_table(f"n.t{abs(hash(request.node.name))}", schema=_ROWS.schema)
    table.append(_ROWS)
    table.append(_MORE)
    return table


def _root(table: Table) -> str:
    return table.location().removeprefix("file://")


def _iceberg_evolved(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("stars", IntegerType())
        update.delete_column("id")
    table.append(pa.table({"text": ["six"], "stars": pa.array([6], pa.int32())}))
    with table.update_schema() as update:
        update.update_column("stars", LongType())


@pytest.mark.parametrize(
    "change",
    [
        lambda table: None,
        lambda table: table.delete("id = 2"),
        lambda table: table.overwrite(_MORE),
        lambda table: table.delete("id < 4"),
        _iceberg_evolved,
    ],
    ids=["appended", "rewritten", "overwritten", "dropped", "evolved"],
)
@pytest.mark.parametrize("folder", ["", "/data"])
def test_an_iceberg_table_gives_the_rows_of_its_newest_version(
    change: Callable[[Table], None], folder: str, iceberg: Table
) -> None:
    change(iceberg)
    found, expected = _read(_root(iceberg) + folder), iceberg.scan().to_arrow()
    _same(found, expected)
    assert all(
        field.type == pa.string() or field.type == expected.schema.field(field.name).type for field in found.schema
    )


def test_a_partitioned_iceberg_table_that_was_moved(catalog: SqlCatalog, tmp_path: Path) -> None:
    schema = Schema(NestedField(1, "id", LongType()), NestedField(2, "text", StringType()))
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "kind"))
    table = catalog.create_table("n.partitioned", schema=schema, partition_spec=spec)
    table.append(_ROWS)
    table.delete("text = 'two'")
    expected = table.scan().to_arrow()
    shutil.move(_root(table), tmp_path / "moved")
    _same(_read(tmp_path / "moved"), expected)
    for info in filesystems.list_files(str(tmp_path / "moved")):
        there = "memory://iceberg" + info.url.removeprefix(str(tmp_path))
        filesystems.write_bytes(there, filesystems.read_bytes(info.url))
    try:
        _same(_read("memory://iceberg"), expected)
    finally:
        filesystems.delete("memory://iceberg")


def test_an_iceberg_column_that_was_renamed_is_refused_until_the_files_are_new(iceberg: Table) -> None:
    with iceberg.update_schema() as update:
        update.rename_column("text", "body")
    with pytest.raises(InputError, match=r"column 'body' of the Iceberg table .* was renamed"):
        _read(_root(iceberg), text="body")
    iceberg.overwrite(_MORE.rename_columns(["id", "body"]))
    _same(_read(_root(iceberg), text="body"), iceberg.scan().to_arrow())


def test_delete_files_of_iceberg_are_refused_by_name(iceberg: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = DataScan.plan_files

    def with_deletes(self: DataScan) -> list[FileScanTask]:  # which other writers make, and pyiceberg does not
        return [FileScanTask(task.file, delete_files={task.file}) for task in plan(self)]

    monkeypatch.setattr(DataScan, "plan_files", with_deletes)
    with pytest.raises(InputError, match=r"Iceberg table .* has rows deleted by delete files.*rewrite_data_files"):
        _read(_root(iceberg))


def test_two_newest_metadata_files_are_refused(iceberg: Table) -> None:
    newest = Path(iceberg.metadata_location.removeprefix("file://"))
    shutil.copy(newest, newest.with_name(newest.name.split("-")[0] + "-other.metadata.json"))
    with pytest.raises(InputError, match="several newest metadata files"):
        _read(_root(iceberg))


def test_a_table_file_elsewhere_is_not_opened(iceberg: Table) -> None:
    newest = Path(iceberg.metadata_location.removeprefix("file://"))
    metadata = json.loads(newest.read_text())
    for snapshot in metadata["snapshots"]:
        snapshot["manifest-list"] = "file:///etc/hostname"
    newest.write_text(json.dumps(metadata))
    with pytest.raises(InputError, match="a file outside of its folder, 'file:///etc/hostname'"):
        _read(_root(iceberg))


def _changed(table: Table, change: Callable[[dict[str, Any]], None]) -> None:
    """The newest metadata, changed as anyone can who may write into the folder."""
    newest = Path(table.metadata_location.removeprefix("file://"))
    metadata = json.loads(newest.read_text())
    change(metadata)
    newest.write_text(json.dumps(metadata))


def test_no_property_of_a_table_chooses_code(iceberg: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chosen_by_a_table.py").write_text("import builtins\nbuiltins.chosen_by_a_table = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    names = ("py-io-impl", "py-catalog-impl", "py-location-provider-impl", "write.py-location-provider.impl")
    _changed(iceberg, lambda metadata: metadata["properties"].update(dict.fromkeys(names, "chosen_by_a_table.X")))
    _same(_read(_root(iceberg)), iceberg.scan().to_arrow())
    assert "chosen_by_a_table" not in sys.modules
    assert not hasattr(builtins, "chosen_by_a_table")


@pytest.mark.parametrize("written", ["file:", "file://", ""])
@pytest.mark.parametrize("location", ["file:", "file://", ""])
def test_every_spelling_of_a_local_path_is_the_same_place(location: str, written: str, iceberg: Table) -> None:
    expected, root = iceberg.scan().to_arrow(), _root(iceberg)

    def change(metadata: dict[str, Any]) -> None:
        metadata["location"] = location + root
        for snapshot in metadata["snapshots"]:
            snapshot["manifest-list"] = written + snapshot["manifest-list"].removeprefix("file://")

    _changed(iceberg, change)
    _same(_read(root), expected)


@pytest.mark.parametrize("kind", ["iceberg", "delta"])
def test_what_a_library_says_of_a_damaged_table_is_kept_back(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if kind == "iceberg":
        iceberg = request.getfixturevalue("iceberg")
        _changed(iceberg, lambda metadata: metadata.update({"format-version": "a secret word"}))
        root = _root(iceberg)
    else:
        root = str(tmp_path)
        _appended(root)
        added = {"path": "x", "partitionValues": {}, "size": 1, "modificationTime": "a secret word"}
        (tmp_path / "_delta_log" / f"{1:020}.json").write_text(json.dumps({"add": added}))
    with pytest.raises(InputError, match=r"cannot read .* table .*Error\)") as caught:
        _read(root)
    assert "secret" not in str(caught.value)


def test_large_types_are_small_ones_inside_of_every_other() -> None:
    for outer in (
        lambda kind: pa.list_(kind, 2),
        lambda kind: pa.dictionary(pa.int32(), kind),
        lambda kind: pa.map_(kind, pa.list_(kind, 1)),
        lambda kind: pa.struct({"a": pa.list_(kind)}),
    ):
        given = pa.schema([("v", outer(pa.large_string())), ("w", outer(pa.large_list(pa.large_binary())))])
        assert plain_schema(given) == pa.schema([("v", outer(pa.string())), ("w", outer(pa.list_(pa.binary())))])


def test_what_a_table_has_is_known_to_the_plan_by_size_and_version(tmp_path: Path, caplog: Any) -> None:
    _deleted(str(tmp_path))
    with caplog.at_level(logging.WARNING):
        listed = list_inputs(ReadSettings(tmp_path))
    assert [(info.url, info.size, info.version) for info in listed] == [
        (info.url, info.size, info.version)
        for info in map(filesystems.file_info, sorted(DeltaTable(str(tmp_path)).file_uris()))
    ]
    assert not caplog.records  # files that are gone from the table are not worth a word
