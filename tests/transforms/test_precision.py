"""What an output is made with: the precision that was chosen counts; the model's path and the batches do not."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from distilbeam.transforms import Embed
from distilbeam.transforms.distilbert import compute
from distilbeam.transforms.encoder import Encoder, EngineSettings
from distilbeam.transforms.errors import OutputExistsError, SettingsError
from distilbeam.transforms.features import WriteFeatures
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.inference import _Identity
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.output.manifest import load_manifest
from distilbeam.transforms.output.records import agree, fingerprint, identity
from distilbeam.transforms.provenance import Provenance
from distilbeam.transforms.workers import FeaturizeBatches
from tests.checkpoints import Checkpoints
from tests.recurring import Folder, Killed, forget, ids, run

ROOT = "memory://precision"
OUT = f"{ROOT}/out"


@pytest.fixture
def folder() -> Iterator[Folder]:
    forget(ROOT)
    folder = Folder(f"{ROOT}/in")
    folder.put("a", ["a1", "a2"])
    folder.put("b", ["b1"])
    yield folder
    forget(ROOT)


class Model:
    """A stage that leaves the precision to the worker, of which one can be had and others perhaps not."""

    def __init__(
        self, dtype: str, *others: str, path: str = "/m/tiny", asked: str = "auto", weights: str = "w"
    ) -> None:
        self.settings = {"model": path, "dtype": asked, "features": ["embedding"]}
        self._dtype, self._can, self._weights = dtype, (dtype, *others), weights

    def __call__(self) -> dict[str, Any]:
        return {
            "weights_sha256": self._weights,
            "tokenizer_sha256": "t",
            "settings": self.settings,
            "effective": {},
            "compute": {"device": "cpu", "dtype": self._dtype, "threads": 1},
        }

    def check_dtype(self, dtype: str) -> None:
        if dtype not in self._can:
            raise SettingsError(f"dtype {dtype!r} cannot be had here")


def go(folder: Folder, model: Model, **said: Any) -> Any:
    return run(folder.url, OUT, settings=[model.settings], models=[model], **said)


def planned(folder: Folder, model: Model, incremental: bool = True) -> set[tuple[str, ...]]:
    """The precisions that the splits of a plan ask for."""
    ledger = WriteFeatures(OUT, if_exists="resume").ledger(model.settings, incremental=incremental, models=[model])
    return {split.dtypes for split, finished in ledger.plan(ReadSettings(folder.url)) if not finished}


@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_new_rows_are_computed_as_those_that_are_there(folder: Folder, first: str) -> None:
    assert planned(folder, Model(first)) == {()}
    go(folder, Model(first))
    folder.put("c", ["c1"])
    other = Model("float32" if first == "bfloat16" else "bfloat16", first)
    assert planned(folder, other) == {(first,)}
    assert planned(folder, Model(first)) == {(first,)}


def test_a_job_that_is_resumed_goes_on_as_it_began(folder: Folder) -> None:
    with pytest.raises(Killed):
        go(folder, Model("bfloat16"), die_after=1)
    assert planned(folder, Model("float32", "bfloat16")) == {("bfloat16",)}


def test_what_this_worker_cannot_go_on_with_is_refused_or_starts_anew(folder: Folder) -> None:
    go(folder, Model("float16"))
    here = Model("float32", path="../tiny")
    assert go(folder, here).plan == (2, 2), "nothing is to be done"
    folder.put("c", ["c1"])
    with pytest.raises(
        OutputExistsError, match=r"computed in float16, in which this worker .*.*float16.* cannot be had"
    ):
        go(folder, here)
    assert ids(OUT) == ["a1", "a2", "b1"]
    assert go(folder, here, if_changed="overwrite").read.total() == 4
    assert ids(OUT) == folder.rows
    assert {compute["dtype"] for compute in load_manifest(OUT).computes} == {"float32"}


def test_a_precision_that_was_set_is_not_held_against_what_was_chosen(folder: Folder) -> None:
    go(folder, Model("float32", asked="float32"))
    folder.put("c", ["c1"])
    assert planned(folder, Model("float32", asked="float32")) == {()}
    with pytest.raises(OutputExistsError, match=r"dtype` was 'float32', is 'auto'"):
        go(folder, Model("float32"))


def test_the_path_of_a_model_does_not_count_where_its_hashes_do(folder: Folder) -> None:
    go(folder, Model("float32"))
    assert go(folder, Model("float32", path="s3://models/tiny")).plan == (2, 2)
    folder.put("c", ["c1"])
    assert go(folder, Model("float32", path="../m/tiny")).plan == (3, 2)
    assert ids(OUT) == folder.rows
    with pytest.raises(OutputExistsError, match="another model: its weights or tokenizer differ"):
        go(folder, Model("float32", weights="other"))


def test_the_path_counts_where_nothing_else_tells_the_model(folder: Folder) -> None:
    one, two = {"model": "one", "dtype": "auto"}, {"model": "two", "dtype": "auto"}
    assert agree([one], [one])
    assert not agree([one], [two])
    assert agree([one], [{"dtype": "auto"}])
    assert not agree([one], [])
    assert identity([{"settings": one}]) == identity([{"settings": two}])
    assert fingerprint("s", [{"settings": one}], {}) == fingerprint("s", [{"settings": two}], {})


@pytest.mark.parametrize("incremental", [True, False])
def test_the_size_of_batches_does_not_count(folder: Folder, incremental: bool) -> None:
    run(folder.url, OUT, incremental=incremental)
    again = run(folder.url, OUT, incremental=incremental, batch_rows=1, batch_bytes=100)
    assert again.plan[0] == again.plan[1]
    # The value of c709a7a, when batches counted: an output of then goes on.
    digest = "ca566979373eb0190df685a7f563569cd4ed740dc139a4c49f477bb4ec1b077d"
    assert ReadSettings("x", batch_rows=7).digest == ReadSettings("y").digest == digest


def test_an_output_for_which_batches_counted_goes_on(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        former = ReadSettings("x", batch_rows=1)
        digest = former.as_made_by(_former_digest(former)).digest
        assert digest == _former_digest(former) != former.digest
        patch.setattr(ReadSettings, "digest", digest)
        run(folder.url, OUT)
    folder.put("c", ["c1"])
    assert run(folder.url, OUT, batch_rows=1).plan == (3, 2)
    assert ids(OUT) == folder.rows
    with pytest.raises(OutputExistsError, match="other settings of the input"):
        run(folder.url, OUT, batch_rows=2)


def _former_digest(settings: ReadSettings) -> str:
    """What the version before made of settings."""
    names = ("text", "keep", "nulls", "id", "separator", "batch_rows", "batch_bytes", "max_line_bytes")
    values = [getattr(settings, name) for name in (*names, "rejects_include_text")]
    return hashlib.sha256(json.dumps([*values, []]).encode()).hexdigest()


def test_the_worker_heeds_what_is_pinned(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})
    monkeypatch.setattr(compute, "cpu_has_bfloat16", lambda: True)
    worker = FeaturizeBatches(checkpoints.bare, EngineSettings("cpu"), FeatureSpec(("embedding",)), 60.0)
    found = {}
    for dtypes in ((), ("float32",), ("",)):
        batch = Provenance("f", "s", text=("text",), dtypes=dtypes).attach(pa.record_batch({"text": ["the cat"]}))
        (model,) = Provenance.of(worker.featurize(batch, Provenance.of(batch))[0]).models
        assert model["settings"]["dtype"] == "auto"
        found[dtypes] = model["compute"]["dtype"]
    assert found == {(): "bfloat16", ("float32",): "float32", ("",): "bfloat16"}
    with pytest.raises(SettingsError, match="needs a CUDA device"):
        _Identity(checkpoints.bare, EngineSettings("cpu"), FeatureSpec(("embedding",))).check_dtype("float16")
    with pytest.raises(SettingsError, match="pinned is 'odd'"):
        replace(EngineSettings(), pinned="odd")


def test_a_transform_has_what_a_ledger_asks(checkpoints: Checkpoints) -> None:
    embed = Embed(checkpoints.bare, device="cpu")
    embed.identity.check_dtype("float32")  # type: ignore[attr-defined]
    assert identity([embed.identity()])[0]["settings"]["dtype"] == "auto"
