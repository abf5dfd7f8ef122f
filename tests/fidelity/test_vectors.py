"""Vectors of a trained sentence encoder against Hugging Face and sentence-transformers."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from distilbeam.transforms import Encoder

pytestmark = [pytest.mark.data, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def model(models: Path) -> str:
    return str(models / "minilm-l6-distilbert")


def _news(data: Path) -> list[str]:
    with (data / "agnews" / "test.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _hugging_face(model: str, texts: list[str]) -> npt.NDArray[np.float32]:
    """Mean of the hidden states, unit length, one text at a time."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    encoder = AutoModel.from_pretrained(model, dtype=torch.float32).eval()
    vectors = []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, truncation=True, max_length=256, return_tensors="pt")["input_ids"]
            mean = encoder(ids).last_hidden_state[0].mean(0)
            vectors.append((mean / mean.norm()).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("count", [300, pytest.param(2_000, marks=pytest.mark.slow)])
def test_news_have_hugging_faces_vectors(model: str, data: Path, count: int) -> None:
    texts = _news(data)[:count]
    ours = Encoder.load(model, device="cpu", dtype="float32").embed(texts)
    assert ours.shape == (count, 384)
    assert np.abs(ours - _hugging_face(model, texts)).max() < 1e-5


def test_bfloat16_points_where_float32_does(model: str, data: Path) -> None:
    texts = _news(data)[:200]
    exact = Encoder.load(model, device="cpu", dtype="float32").embed(texts)
    reduced = Encoder.load(model, device="cpu", dtype="bfloat16").embed(texts)
    assert (exact * reduced).sum(1).min() > 0.9995


def test_int8_points_nearly_where_float32_does(model: str, data: Path) -> None:
    texts = _news(data)[:200]
    exact = Encoder.load(model, device="cpu", dtype="float32").embed(texts)
    cosines = (exact * Encoder.load(model, dtype="int8").embed(texts)).sum(1)
    assert cosines.min() > 0.98
    assert np.median(cosines) > 0.995


def test_float16_storage_is_rounding_and_no_more(model: str, data: Path) -> None:
    import pyarrow as pa

    from distilbeam.transforms.featurization import FeatureSpec

    texts = _news(data)[:50]
    encoder = Encoder.load(model, device="cpu", dtype="float32")
    batch = pa.record_batch({"text": texts})
    column = encoder.featurize(batch, FeatureSpec(("embedding",), embedding_dtype="float16"))["embedding"]
    stored = column.flatten().to_numpy().reshape(50, 384)
    np.testing.assert_array_equal(stored, encoder.embed(texts).astype(np.float16))


def _pairs(path: Path) -> tuple[list[str], list[str], list[float]]:
    """Both sentences and, where the file has one (GLUE keeps those of its test set), the score."""
    header, *rows = (line.split("\t") for line in path.read_text(encoding="utf-8").splitlines())
    left, right = header.index("sentence1"), header.index("sentence2")
    scores = [float(row[header.index("score")]) for row in rows] if "score" in header else []
    return [row[left] for row in rows], [row[right] for row in rows], scores


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("dev", 1_500), ("test", 1_379)])
def test_similarities_rank_as_sentence_transformers_does(model: str, data: Path, part: str, count: int) -> None:
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    left, right, gold = _pairs(data / "stsb" / f"{part}.tsv")
    assert len(left) == count
    encoder = Encoder.load(model, device="cpu", dtype="float32")
    theirs = SentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    a, b = encoder.embed(left), encoder.embed(right)
    c, d = theirs.encode(left), theirs.encode(right)
    np.testing.assert_allclose(a, c, atol=1e-5)
    np.testing.assert_allclose(b, d, atol=1e-5)
    ours, expected = (a * b).sum(1), (c * d).sum(1)
    assert spearmanr(ours, expected).statistic > 0.999999
    if gold:
        found = spearmanr(ours, gold).statistic
        assert found == pytest.approx(spearmanr(expected, gold).statistic, abs=1e-5)
        assert found > 0.8
