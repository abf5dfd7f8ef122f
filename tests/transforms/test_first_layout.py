"""An output of the first versions, which put the features at the top of the folder; written by one of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from distilbeam.pipelines.inspection import inspect
from distilbeam.transforms.documents import ReadDocuments
from distilbeam.transforms.errors import OutputExistsError
from distilbeam.transforms.features import WriteFeatures
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.staging import OutputState
from tests.outputs import check_settled, files, visible_rows
from tests.plans import Plan

MADE = Path(__file__).parent / "first_layout"
FEATURES = "part-00000-800b2478.parquet"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    shutil.copytree(MADE, folder)
    return folder


def test_it_is_inspected(output: Path) -> None:
    found = inspect(str(output))
    assert (found.rows, found.rejects.total, found.shards) == (2, 1, 1)
    assert [row["text"] for row in found.sample] == ["the cat", "a bad film"]
    assert found.vectors is not None
    assert found.vectors.count == 2
    assert (found.features, found.opening) == (str(output), {})
    assert found.labels == dict(Counter(pq.read_table(output / FEATURES)["label"].to_pylist()))


@pytest.mark.parametrize("incremental", [False, True])
def test_it_is_not_gone_on_with(output: Path, incremental: bool, tmp_path: Path) -> None:
    before = files(str(output))
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "the cat"}\n')
    settings = load_manifest(str(output)).models[0]["settings"]
    ledger = WriteFeatures(output, if_exists="resume").ledger(settings, incremental=incremental)
    with pytest.raises(OutputExistsError, match=r"older version of distilbeam.*`if_exists='overwrite'` to replace it"):
        ledger.plan(ReadDocuments(str(tmp_path / "in.jsonl")).settings)
    plan = Plan(settings=settings)
    with pytest.raises(OutputExistsError, match="older version of distilbeam"):
        commit(str(output), plan.write_all(output), if_exists="resume", base=begin(str(output), "resume"))
    assert {path: data for path, data in files(str(output)).items() if "staging" not in path} == before


def test_its_files_are_not_passed_over(output: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "text": "the cat"}\n')
    settings = load_manifest(str(output)).models[0]["settings"]
    reading = ReadDocuments(str(tmp_path / "in.jsonl")).settings
    new = tmp_path / "new"
    ledger = WriteFeatures(new, if_exists="resume").ledger(settings, since=output)
    with pytest.raises(
        OutputExistsError, match=r"older version of distilbeam.*`if_changed='overwrite'` to process all"
    ):
        ledger.plan(reading)
    ledger = WriteFeatures(new, if_exists="overwrite").ledger(settings, since=output, if_changed="overwrite")
    assert [finished for _, finished in ledger.plan(reading)] == [False]


def test_it_is_replaced(output: Path) -> None:
    plan = Plan()
    commit(str(output), plan.write_all(output), if_exists="overwrite", base=begin(str(output), "overwrite"))
    check_settled(str(output))
    assert visible_rows(str(output)) == plan.rows
    assert {path.name for path in output.iterdir()} == {"features", "_rejects", "_distilbeam"}
    assert not inspect(str(output)).unfinished


def test_it_is_replaced_by_a_commit_that_is_cut_off_and_finished(output: Path) -> None:
    """The entry names files of both layouts."""
    plan = Plan()
    records = plan.write_all(output)
    manifest = output / "_distilbeam" / "manifest.json"
    old = manifest.read_bytes()
    commit(str(output), records, if_exists="overwrite", base=begin(str(output), "overwrite"))
    manifest.write_bytes(old)  # all but the last step
    state = OutputState.read(str(output))
    assert [entry.commit for entry in state.unfinished] == [2]
    assert FEATURES in state.unfinished[0].removed
    commit(str(output), plan.write_all(output), if_exists="resume", base=begin(str(output), "resume"))
    check_settled(str(output))
    assert visible_rows(str(output)) == plan.rows
    assert json.loads(manifest.read_bytes())["commit"] >= 2
