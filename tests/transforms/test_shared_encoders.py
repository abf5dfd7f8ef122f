"""Models that a process shares: one at a time per name, gone with the last who uses them."""

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import torch

from distilbeam.transforms import Classify, Embed, Encoder
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.encoder import EngineSettings
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import Checkpoints, edit_json

CPU = EngineSettings("cpu", "float32", 1)


def test_a_model_goes_with_the_last_who_uses_it(checkpoints: Checkpoints) -> None:
    one, two = Encoder.shared(checkpoints.bare, CPU), Encoder.shared(checkpoints.bare, CPU)
    assert one is two
    one.embed(["the cat"])
    alive, engine = weakref.ref(one), weakref.ref(one.engine)
    del one
    gc.collect()
    assert alive() is two
    del two
    gc.collect()
    assert (alive(), engine()) == (None, None)
    assert not Encoder._opening


@pytest.mark.slow
def test_jobs_leave_no_model(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[weakref.ref[Any]] = []
    create = Encoder.__init__

    def noted(self: Encoder, *given: Any) -> None:
        opened.append(weakref.ref(self))
        create(self, *given)

    monkeypatch.setattr(Encoder, "__init__", noted)
    for transform in (Embed(checkpoints.bare, device="cpu"), Classify(checkpoints.classifier, device="cpu")):
        with beam.Pipeline("FnApiRunner") as p:
            _ = p | beam.Create([beam.Row(text="the cat"), beam.Row(text="a film")]) | transform
        gc.collect()
        assert opened
        assert not [encoder for encoder in opened if encoder() is not None]


def test_it_is_found_anew_once_it_is_gone(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints.bare, folder)
    before = Encoder.shared(str(folder), CPU)
    edit_json(folder / "config.json", activation="relu")
    assert Encoder.shared(str(folder), CPU).checkpoint.config.activation == "gelu"
    del before
    gc.collect()
    assert Encoder.shared(str(folder), CPU).checkpoint.config.activation == "relu"


def test_one_that_is_fetched_keeps_nobody_else_waiting(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    really, asked = Checkpoint.open, []

    def slowly(model: str, sha256: str | None = None) -> Checkpoint:
        asked.append(model)
        if model == "slow":
            begun.set()
            assert go_on.wait(60)
        return really(checkpoints.bare, sha256)

    monkeypatch.setattr(Checkpoint, "open", slowly)
    found: list[Encoder] = []
    threads = [threading.Thread(target=lambda: found.append(Encoder.shared("slow", CPU))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    assert Encoder.shared("other", CPU).tokenize(["the cat"]).lengths.tolist() == [4]  # the slow one is still away
    assert not found
    go_on.set()
    for thread in threads:
        thread.join()
    assert asked.count("slow") == 1
    assert len(found) == 3
    assert len(set(map(id, found))) == 1


def test_one_that_cannot_be_opened_is_tried_again(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for _ in range(2):
        with pytest.raises(CheckpointError):
            Encoder.shared(str(folder), CPU)
    shutil.copytree(checkpoints.bare, folder)
    Encoder.shared(str(folder), CPU)


def test_two_models_work_side_by_side(checkpoints: Checkpoints) -> None:
    threads = torch.get_num_threads()
    texts = ["the cat sat", "a good film!", "bad"] * 20
    alone = {}
    encoders = {
        name: Encoder.shared(getattr(checkpoints, name), EngineSettings("cpu", "float32", count))
        for name, count in (("bare", 1), ("half", 2))
    }
    for name, encoder in encoders.items():
        alone[name] = encoder.embed(texts)
        assert torch.get_num_threads() == threads
    found: dict[str, list[Any]] = {name: [] for name in encoders}
    start = threading.Barrier(2)

    def run(name: str) -> None:
        start.wait()
        for _ in range(5):
            found[name].append(encoders[name].embed(texts))

    workers = [threading.Thread(target=run, args=(name,)) for name in encoders]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name, vectors in found.items():
        assert len(vectors) == 5
        for each in vectors:
            np.testing.assert_allclose(each, alone[name], atol=1e-6)
    assert torch.get_num_threads() == threads
