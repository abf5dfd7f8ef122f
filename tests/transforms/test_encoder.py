"""The features without Beam: what the README promises, against Hugging Face and sentence-transformers."""

import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
from safetensors.torch import load_file

from distilbeam.transforms import Encoder, Prediction
from distilbeam.transforms.encoder import EngineSettings
from distilbeam.transforms.errors import DistilbeamError, SettingsError
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.fitness import check_spec
from distilbeam.transforms.output.manifest import identity
from tests.checkpoints import DIM, UNCASED_VOCABULARY, Checkpoints, edit_json, edit_tensors

TEXTS = ["the cat sat", "", "good film!", "the " * 100, "naïve café 中国", "bad"]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Encoder, "_shared", {})


def load(model: str, **settings: Any) -> Encoder:
    return Encoder.load(model, **{"device": "cpu", "dtype": "float32", "threads": 1} | settings)


def test_vectors_are_those_of_sentence_transformers(checkpoints: Checkpoints) -> None:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(checkpoints.sentence, device="cpu").encode(TEXTS)
    ours = load(checkpoints.sentence).embed(TEXTS)
    assert (ours.dtype, ours.shape) == (np.float32, (len(TEXTS), DIM))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "max", "mean"])
@pytest.mark.parametrize("normalize", [False, True])
def test_the_folders_pooling_is_honoured_and_may_be_overruled(
    checkpoints: Checkpoints, pooling: str, normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = checkpoints.sentence_folder(f"pooled-{pooling}-{normalize}", pooling, normalize=normalize)
    theirs = SentenceTransformer(folder, device="cpu").encode(TEXTS)
    np.testing.assert_allclose(load(folder).embed(TEXTS), theirs, atol=1e-5)
    other = load(checkpoints.bare).embed(TEXTS, pooling=pooling, normalize=normalize)
    np.testing.assert_allclose(other, theirs, atol=1e-5)
    cut = SentenceTransformer(folder, device="cpu", truncate_dim=8).encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(load(folder).embed(TEXTS, dimensions=8, normalize=True), cut, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", [["cls", "mean"], ["max", "mean", "cls"], ["mean"]])
def test_a_folder_may_pool_in_several_ways_and_cut_its_vectors(
    checkpoints: Checkpoints, tmp_path: Path, pooling: list[str], normalize: bool
) -> None:
    from sentence_transformers import SentenceTransformer

    source = checkpoints.sentence_folder(f"several-{len(pooling)}-{normalize}", "mean", normalize=normalize)
    folder = shutil.copytree(source, tmp_path / "model")
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode=pooling)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    assert theirs.shape == (len(TEXTS), len(pooling) * DIM)
    encoder = load(str(folder))
    np.testing.assert_allclose(encoder.embed(TEXTS), theirs, atol=1e-5)
    cut = SentenceTransformer(str(folder), device="cpu", truncate_dim=DIM // 2)
    saved = tmp_path / "cut"
    cut.save(str(saved))
    assert json.loads((saved / "config_sentence_transformers.json").read_text())["truncate_dim"] == DIM // 2
    shorter = load(str(saved))
    np.testing.assert_allclose(shorter.embed(TEXTS), cut.encode(TEXTS), atol=1e-5)
    unit = cut.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(shorter.embed(TEXTS, normalize=True), unit, atol=1e-5)
    np.testing.assert_allclose(shorter.embed(TEXTS, dimensions=DIM), encoder.embed(TEXTS, dimensions=DIM), atol=1e-6)
    assert (shorter.checkpoint.dimensions(), shorter.checkpoint.dimensions("cls")) == (DIM // 2, DIM // 2)
    assert (encoder.checkpoint.dimensions(), encoder.checkpoint.dimensions("cls")) == (len(pooling) * DIM, DIM)
    spec = FeatureSpec(("embedding",))
    assert identity([shorter.identity(spec)]) != identity([encoder.identity(spec)])
    with pytest.raises(SettingsError, match=f"`dimensions` is 999; .* has {len(pooling) * DIM}"):
        shorter.embed(TEXTS, dimensions=999)


@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
@pytest.mark.parametrize("names", [None, {"0": "quality"}])
def test_one_output_gives_its_score(checkpoints: Checkpoints, tmp_path: Path, problem: str | None, names: Any) -> None:
    from transformers import pipeline

    folder = shutil.copytree(checkpoints.classifier, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    one = {f"classifier__{part}": tensors[f"classifier.{part}"][:1].clone() for part in ("weight", "bias")}
    edit_tensors(folder / "model.safetensors", **one)
    edit_json(folder / "config.json", id2label=names, label2id=None, problem_type=problem, num_labels=1)
    theirs = pipeline("text-classification", model=str(folder), device="cpu")(TEXTS, truncation=True, max_length=64)
    outputs = load(str(folder)).outputs(TEXTS, FeatureSpec(("label", "score", "scores")))
    labels, score, scores, *_ = (column.to_pylist() for column in outputs.columns)
    assert labels == [row["label"] for row in theirs]
    assert score == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    assert scores == [{label: value} for label, value in zip(labels, score, strict=True)]
    assert (max(map(abs, score)) > 1) == (problem == "regression")


def test_several_values_are_scores_and_no_label(checkpoints: Checkpoints, tmp_path: Path) -> None:
    from transformers import pipeline

    folder = shutil.copytree(checkpoints.three_classes, tmp_path / "model")
    edit_json(folder / "config.json", problem_type="regression")
    theirs = pipeline("text-classification", model=str(folder), device="cpu", top_k=None)(
        TEXTS, truncation=True, max_length=64
    )
    encoder = load(str(folder))
    (scores, *_) = encoder.outputs(TEXTS, FeatureSpec(("scores",))).columns
    for row, expected in zip(scores.to_pylist(), theirs, strict=True):
        assert row == pytest.approx({entry["label"]: entry["score"] for entry in expected}, abs=1e-5)
    with pytest.raises(SettingsError, match=r"has 3 outputs that are values .*; ask for the feature 'scores' alone"):
        encoder.classify(TEXTS)


def test_classes_are_those_of_hugging_face(checkpoints: Checkpoints) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=checkpoints.classifier, device="cpu")
    ours = load(checkpoints.classifier).classify(TEXTS)
    theirs = classify(TEXTS, truncation=True, max_length=64)
    assert all(isinstance(prediction, Prediction) for prediction in ours)
    assert [prediction.label for prediction in ours] == [row["label"] for row in theirs]
    assert [p.score for p in ours] == pytest.approx([row["score"] for row in theirs], abs=1e-5)
    assert len({prediction.label for prediction in ours}) == 2


def test_classes_that_do_not_exclude_each_other(checkpoints: Checkpoints) -> None:
    from transformers import pipeline

    classify = pipeline("text-classification", model=checkpoints.multi_label, device="cpu", top_k=None)
    outputs = load(checkpoints.multi_label).outputs(TEXTS, FeatureSpec(("label", "score", "scores")))
    labels, score, scores, *_ = (column.to_pylist() for column in outputs.columns)
    theirs = [{row["label"]: row["score"] for row in rows} for rows in classify(TEXTS, truncation=True, max_length=64)]
    for row, expected in enumerate(theirs):
        assert scores[row] == pytest.approx(expected, abs=1e-5)
        assert labels[row] == max(expected, key=lambda label: expected[label])
        assert score[row] == pytest.approx(max(expected.values()), abs=1e-5)
    assert any(abs(sum(row.values()) - 1) > 0.1 for row in scores)


def test_token_ids(checkpoints: Checkpoints) -> None:
    tokens = load(checkpoints.bare).tokenize(["the cat", "the " * 9], max_length=6)
    words = [UNCASED_VOCABULARY[token] for token in tokens.ids]
    assert words == ["[CLS]", "the", "cat", "[SEP]", "[CLS]", "the", "the", "the", "the", "[SEP]"]
    assert tokens.truncated.tolist() == [False, True]
    assert load(checkpoints.sentence).tokenize(["the " * 99]).lengths.tolist() == [32]


def test_no_texts(checkpoints: Checkpoints) -> None:
    encoder = load(checkpoints.classifier)
    assert encoder.embed([]).shape == (0, DIM)
    assert encoder.classify([]) == []
    assert len(encoder.tokenize([])) == 0


def test_one_string_is_not_a_list(checkpoints: Checkpoints) -> None:
    encoder = load(checkpoints.classifier)
    for method in (encoder.embed, encoder.classify, encoder.tokenize):
        with pytest.raises(SettingsError, match="texts is one string; give a list of strings"):
            method("the cat")


def test_a_text_that_cannot_be_processed_is_named_by_its_position(checkpoints: Checkpoints) -> None:
    with pytest.raises(DistilbeamError, match=r"text 1 cannot be processed \(tokenize, \w+\)") as caught:
        load(checkpoints.bare).embed(["the", "private \ud800"])
    assert "private" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("bare", FeatureSpec(("label",)), "has no classification head"),
        ("masked_lm", FeatureSpec(("scores",)), "has no classification head"),
        ("bare", FeatureSpec(("embedding",), max_length=65), "`max_length` is 65; .* reads at most 64 tokens"),
        ("bare", FeatureSpec(("embedding",), dimensions=DIM + 1), f"`dimensions` is {DIM + 1}; .* has {DIM}"),
    ],
)
def test_what_a_checkpoint_cannot_give_is_refused(
    checkpoints: Checkpoints, name: str, spec: FeatureSpec, message: str
) -> None:
    encoder = load(getattr(checkpoints, name))
    with pytest.raises(SettingsError, match=message):
        check_spec(encoder.checkpoint, spec)
    with pytest.raises(SettingsError, match=message):
        encoder.outputs(["the"], spec)


def test_tokenizing_knows_no_limit_of_positions(checkpoints: Checkpoints) -> None:
    assert load(checkpoints.bare).tokenize(["the " * 500], max_length=400).lengths.tolist() == [400]


def test_a_folder_whose_embedding_is_unknown_needs_a_pooling(checkpoints: Checkpoints, tmp_path: Any) -> None:
    import json
    import shutil

    folder = shutil.copytree(checkpoints.sentence, tmp_path / "model")
    modules = json.loads((folder / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = load(str(folder))
    with pytest.raises(
        SettingsError, match=r"its modules are Transformer > Pooling > Dense;.*: `pooling` gives the vectors before"
    ):
        encoder.embed(["the"])
    assert encoder.embed(["the"], pooling="mean").shape == (1, DIM)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "gpu"}, "`device` is 'gpu'; it must be auto, cpu, cuda or cuda:N"),
        ({"device": "cuda:x"}, "`device` is 'cuda:x'"),
        ({"device": "cuda:"}, "`device` is 'cuda:'"),
        ({"device": "cpu:0"}, "`device` is 'cpu:0'"),
        ({"dtype": "bf16"}, "`dtype` is 'bf16'; it must be one of auto, float32, bfloat16, float16, int8"),
        ({"dtype": "int8", "device": "cuda:1"}, "`dtype='int8'` is for CPUs, and `device` is 'cuda:1'"),
        ({"threads": 0}, "`threads` must be a whole number from 1 to \\d+, not 0"),
        ({"token_budget": -1}, "`token_budget` must be a whole number from 1 to \\d+, not -1"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        EngineSettings(**settings)


def test_cuda_is_not_replaced_by_the_cpu(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingsError, match="`device='cuda'` is not here: this worker has 0 CUDA devices"):
        load(checkpoints.bare, device="cuda").embed(["the"])


def test_one_encoder_is_shared_by_equal_settings(checkpoints: Checkpoints) -> None:
    one = Encoder.shared(checkpoints.bare, EngineSettings(threads=1))
    assert Encoder.shared(checkpoints.bare, EngineSettings(threads=1)) is one
    assert Encoder.shared(checkpoints.bare, EngineSettings(threads=2)) is not one
    assert Encoder.shared(checkpoints.half, EngineSettings(threads=1)) is not one


def test_threads_share_one_model(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    from distilbeam.transforms.distilbert import engine

    loads: list[str] = []

    class Counting(engine.Engine):
        def __init__(self, checkpoint: Any, *arguments: Any) -> None:
            loads.append(checkpoint.name)
            super().__init__(checkpoint, *arguments)

    monkeypatch.setattr(engine, "Engine", Counting)
    settings = EngineSettings("cpu", "float32", 1)
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(Encoder.shared(checkpoints.bare, settings).embed(TEXTS)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == [checkpoints.bare]
    assert len(found) == 4
    for vectors in found:
        np.testing.assert_array_equal(vectors, found[0])


@pytest.mark.slow
def test_nothing_of_torch_is_imported_before_the_model_runs(checkpoints: Checkpoints) -> None:
    code = (
        "import sys\n"
        "from distilbeam.transforms import Encoder\n"
        "encoder = Encoder.load(sys.argv[1], threads=1)\n"
        "encoder.tokenize(['the cat'])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules, 'apache_beam' in sys.modules)\n"
        "encoder.embed(['the cat'])\n"
        "print('torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, checkpoints.bare], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["False False False", "True False"]


def test_texts_are_taken_by_position(checkpoints: Checkpoints) -> None:
    encoder = load(checkpoints.bare)
    texts = ["the cat", "a film", "the the the"]
    series = pandas.Series(texts, index=[2, 1, 0])
    np.testing.assert_array_equal(encoder.embed(series), encoder.embed(texts))
    np.testing.assert_array_equal(encoder.tokenize(series).ids, encoder.tokenize(texts).ids)
    with pytest.raises(SettingsError, match="text 1 is a NoneType; give strings only"):
        encoder.embed(["fine", None])  # type: ignore[list-item]


def test_another_configuration_is_another_model(checkpoints: Checkpoints, tmp_path: Path) -> None:
    spec = FeatureSpec(("label",))
    folder = tmp_path / "model"
    shutil.copytree(checkpoints.classifier, folder)
    before = identity([load(str(folder)).identity(spec)])
    assert identity([load(str(folder)).identity(spec)]) == before
    labels = load(str(folder)).checkpoint.labels
    edit_json(folder / "config.json", id2label={str(index): f"other {name}" for index, name in enumerate(labels)})
    assert identity([load(str(folder)).identity(spec)]) != before
