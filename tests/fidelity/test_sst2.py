"""Sentiment of SST-2's 872 dev sentences: accuracy as published, labels as Hugging Face gives them, row by row."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distilbeam.transforms import Encoder

pytestmark = [pytest.mark.data, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def dev(data: Path) -> tuple[list[str], list[str]]:
    """Sentences and labels."""
    lines = (data / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    sentences, labels = zip(*(line.split("\t") for line in lines), strict=True)
    return list(sentences), [("NEGATIVE", "POSITIVE")[int(label)] for label in labels]


@pytest.fixture(scope="module")
def exact(models: Path, dev: tuple[list[str], list[str]]) -> list[tuple[str, float]]:
    """Labels and scores in float32."""
    return list(Encoder.load(str(models / "sst2-distilbert-384"), device="cpu", dtype="float32").classify(dev[0]))


def test_accuracy(exact: list[tuple[str, float]], dev: tuple[list[str], list[str]]) -> None:
    assert len(exact) == 872
    assert sum(label == expected for (label, _), expected in zip(exact, dev[1], strict=True)) == 778


def test_labels_are_hugging_faces(
    exact: list[tuple[str, float]], dev: tuple[list[str], list[str]], models: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = models / "sst2-distilbert-384"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    probabilities = []
    with torch.inference_mode():
        for sentence in dev[0]:
            inputs = tokenizer(sentence, truncation=True, return_tensors="pt")
            inputs.pop("token_type_ids", None)
            probabilities.append(model(**inputs).logits[0].softmax(0).numpy())
    best = np.argmax(probabilities, axis=1)
    assert [label for label, _ in exact] == [model.config.id2label[int(index)] for index in best]
    np.testing.assert_allclose([score for _, score in exact], np.max(probabilities, axis=1), atol=1e-5)


def test_bfloat16_flips_at_most_one_label(
    exact: list[tuple[str, float]], dev: tuple[list[str], list[str]], models: Path
) -> None:
    reduced = Encoder.load(str(models / "sst2-distilbert-384"), device="cpu", dtype="bfloat16").classify(dev[0])
    assert sum(a != b for (a, _), (b, _) in zip(exact, reduced, strict=True)) <= 1


def test_int8_flips_one_label_in_two_hundred_at_most(
    exact: list[tuple[str, float]], dev: tuple[list[str], list[str]], models: Path
) -> None:
    labels = _labels(models, "int8", dev[0])
    assert sum(a != b for (a, _), b in zip(exact, labels, strict=True)) <= 0.005 * 872
    right = sum(label == expected for label, expected in zip(labels, dev[1], strict=True))
    assert abs(right - 778) <= 0.005 * 872


@pytest.mark.slow
def test_int8_flips_one_label_of_long_reviews_in_two_hundred_at_most(models: Path, data: Path) -> None:
    import pyarrow.parquet as pq

    reviews = pq.read_table(data / "imdb" / "part-1.parquet")["text"].slice(0, 600).to_pylist()
    exact, reduced = _labels(models, "float32", reviews), _labels(models, "int8", reviews)
    assert sum(a != b for a, b in zip(exact, reduced, strict=True)) <= 0.005 * 600


def _labels(models: Path, dtype: str, texts: list[str]) -> list[str]:
    encoder = Encoder.load(str(models / "sst2-distilbert-384"), device="cpu", dtype=dtype)
    return [label for label, _ in encoder.classify(texts)]
