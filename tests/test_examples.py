"""The examples: the tiny model, the corpus, and the script that distils the model."""

import hashlib
import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
)

EXAMPLES = Path(__file__).parents[1] / "examples"
MODEL = EXAMPLES / "distilbert-tiny-sst2"
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}


def classify(folder: Path, texts: list[str]) -> list[str]:
    """Hugging Face's labels, one text at a time, so that no padding is involved."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    labels = []
    for text in texts:
        with torch.inference_mode():
            logits = model(**tokenizer(text, truncation=True, return_tensors="pt")).logits
        labels.append(model.config.id2label[int(logits.argmax())])
    return labels


def card_accuracy(folder: Path, name: str) -> tuple[int, float]:
    """(rows, accuracy) that a model card states for one file."""
    card = (folder / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"\| \S*{re.escape(name)} \| ([\d,]+) \| (\d\.\d{{4}}) \|", card)
    assert found
    return int(found[1].replace(",", "")), float(found[2])


def corpus() -> list[dict[str, Any]]:
    lines = (EXAMPLES / "reviews.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# The tiny model


def test_model_folder_is_complete_and_small() -> None:
    files = {path.name: path.stat().st_size for path in MODEL.iterdir()}
    assert set(files) == MODEL_FILES
    assert sum(files.values()) <= 10_000_000


def test_model_has_the_whole_uncased_vocabulary() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert len(tokenizer) == 30_522
    # Ids of bert-base-uncased.
    assert tokenizer("Hello WORLD, café!")["input_ids"] == [101, 7592, 2088, 1010, 7668, 999, 102]
    model = AutoModelForSequenceClassification.from_pretrained(MODEL, dtype=torch.float32)
    assert model.config.model_type == "distilbert"
    assert model.config.id2label == {0: "NEGATIVE", 1: "POSITIVE"}
    assert model.distilbert.embeddings.word_embeddings.weight.shape == (30_522, 128)
    assert model.config.max_position_embeddings == tokenizer.model_max_length == 512
    assert all(torch.isfinite(weight).all() for weight in model.state_dict().values())


def test_model_labels_clear_sentences() -> None:
    good = ["A wonderful, moving film.", "I love it.", "Brilliant acting and a superb script!", "A joy to watch."]
    bad = ["A dull, terrible film.", "I hate it.", "Awful acting and a horrible script!", "not funny at all"]
    assert classify(MODEL, good + bad) == ["POSITIVE"] * 4 + ["NEGATIVE"] * 4


def test_model_agrees_with_the_ratings_of_the_corpus() -> None:
    rows = [row for row in corpus() if row["rating"] != 3]
    wanted = ["POSITIVE" if row["rating"] > 3 else "NEGATIVE" for row in rows]
    found = classify(MODEL, [row["text"] for row in rows])
    assert np.mean([a == b for a, b in zip(wanted, found, strict=True)]) >= 0.75


@pytest.mark.data
def test_model_card_states_the_accuracy_on_sst2_dev(data: Path) -> None:
    header, *lines = (data / "sst2/dev.tsv").read_text(encoding="utf-8").splitlines()
    assert header == "sentence\tlabel"
    texts, labels = zip(*(line.split("\t") for line in lines), strict=True)
    found = classify(MODEL, list(texts))
    accuracy = np.mean([(a == "POSITIVE") == (b == "1") for a, b in zip(found, labels, strict=True)])
    rows, stated = card_accuracy(MODEL, "dev.tsv")
    assert rows == len(texts) == 872
    assert round(float(accuracy), 4) == stated
    assert stated >= 0.80


# The corpus


def test_corpus_rows_are_valid_and_varied() -> None:
    rows = corpus()
    assert len(rows) == 300
    assert len({row["id"] for row in rows}) == len({row["text"] for row in rows}) == len(rows)
    for row in rows:
        assert list(row) == ["id", "kind", "rating", "text"]
        assert row["kind"] in {"film", "book", "product", "place", "app"}
        assert row["rating"] in {1, 2, 3, 4, 5}
        assert row["text"] == row["text"].strip() != ""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    lengths = [len(ids) for ids in tokenizer([row["text"] for row in rows])["input_ids"]]
    assert sum(length > 512 for length in lengths) == 1  # one text to be truncated
    assert min(lengths) < 8
    assert any(not row["text"].isascii() for row in rows)


def test_corpus_with_errors_has_known_bad_lines() -> None:
    """Line numbers of the bad rows by kind, found with Python's own json; the README lists the same."""
    found: dict[str, list[int]] = {}
    for number, line in enumerate((EXAMPLES / "reviews-with-errors.jsonl").read_bytes().splitlines(), 1):
        try:
            text = json.loads(line.decode("utf-8")).get("text")
        except UnicodeDecodeError:
            kind = "not UTF-8"
        except json.JSONDecodeError:
            kind = "not JSON"
        else:
            if text is None:
                kind = "no text"
            elif not isinstance(text, str):
                kind = "not text"
            else:
                kind = "lone surrogate" if any("\ud800" <= c <= "\udfff" for c in text) else "good"
        found.setdefault(kind, []).append(number)
    good = found.pop("good")
    assert len(good) == 14
    assert found == {
        "not JSON": [3, 17],
        "no text": [5, 19, 21],
        "not text": [8],
        "lone surrogate": [11],
        "not UTF-8": [14],
    }
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for kind, numbers in found.items():
        assert f"| {kind} | {', '.join(map(str, numbers))} |" in readme


# The script


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("distil_tiny", EXAMPLES / "distil_tiny.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random one-layer teacher with the real vocabulary."""
    torch.manual_seed(1)
    names = {"id2label": {0: "NEGATIVE", 1: "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    config = DistilBertConfig(
        dim=24, hidden_dim=32, n_layers=1, n_heads=2, problem_type="single_label_classification", **names
    )
    folder = tmp_path_factory.mktemp("teacher")
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(MODEL).save_pretrained(folder)
    return folder


def test_script_trains_saves_and_reports(
    script: ModuleType, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["a good film", "a bad film with a very long and boring second half", "lovely 'quoted\" text", "dire"]
    rows = [f"{text} {i} \t{j % 2}" for i in range(4) for j, text in enumerate(words)]
    data = tmp_path / "train.tsv"
    data.write_text("\n".join(["sentence\tlabel", *rows]) + "\n", encoding="utf-8")
    options = ["--dim", "16", "--layers", "1", "--epochs", "2", "--cache", str(tmp_path / "cache")]
    digests = []
    for out in (tmp_path / "first", tmp_path / "second"):  # the second run reads the teacher's answers from the cache
        argv = ["distil_tiny.py", str(teacher), str(data), str(out), "--eval", str(data), *options]
        monkeypatch.setattr(sys, "argv", argv)
        script.main()
        digests.append(hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert digests[0] == digests[1]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert {path.name for path in out.iterdir()} == MODEL_FILES
    assert (out / "vocab.txt").read_bytes() == (MODEL / "vocab.txt").read_bytes()

    found = classify(out, [row.split("\t")[0] for row in rows])
    right = [(label == "POSITIVE") == row.endswith("1") for label, row in zip(found, rows, strict=True)]
    assert card_accuracy(out, "train.tsv") == (16, round(float(np.mean(right)), 4))


def test_script_batches_hold_every_row_once_within_the_budget(script: ModuleType) -> None:
    rng = np.random.default_rng(3)
    ids = [[7] * int(n) for n in rng.integers(1, 60, 500)]
    for shuffled in (None, rng):
        groups = script.batches(ids, 256, shuffled)
        assert sorted(np.concatenate(groups)) == list(range(500))
        assert max(len(group) * max(len(ids[row]) for row in group) for group in groups) <= 256
        assert len(groups) < 80


def test_script_projection_keeps_distances_when_nothing_is_cut(script: ModuleType, teacher: Path) -> None:
    big = AutoModelForSequenceClassification.from_pretrained(teacher, dtype=torch.float32)
    small = script.make_student(big, dim=24, layers=1, heads=2)
    rows = torch.arange(2000, 2050)
    before = torch.pdist(big.distilbert.embeddings.word_embeddings.weight[rows])
    after = torch.pdist(small.distilbert.embeddings.word_embeddings.weight[rows])
    ratio = (after / before).detach()
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=0)
