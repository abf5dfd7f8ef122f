"""Texts to measure with: their lengths, as Hugging Face's tokenizer counts them, and their shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from benchmarks.checkpoint import TINY
from benchmarks.corpus import LENGTHS, SHARES, draw_lengths, generate, load, mix, save


def counts(texts: list[str]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]


def test_generated_texts_have_the_lengths_that_were_asked_for() -> None:
    lengths = [1, 2, 30, 600, 1]
    assert counts(generate(lengths, np.random.default_rng(3))) == lengths


def test_lengths_are_distributed_as_in_the_mix() -> None:
    lengths = draw_lengths(40_000, np.random.default_rng(5))
    assert len(lengths) == 40_000
    # Short ones come from tweets and AG News alone, long ones from IMDB: each by its share and its own quantiles.
    assert (lengths >= LENGTHS["imdb"][7]).mean() == pytest.approx(
        SHARES["imdb"] / 2 + SHARES["agnews"] * 0.002, abs=0.01
    )
    assert (lengths <= LENGTHS["tweets"][3]).mean() == pytest.approx(SHARES["tweets"] * 0.1, abs=0.01)
    assert (lengths > LENGTHS["imdb"][11]).mean() == pytest.approx(SHARES["imdb"] * 0.1, abs=0.01)
    assert lengths.min() >= 1
    assert lengths.max() <= max(map(max, LENGTHS.values()))


def test_a_seed_gives_one_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILBEAM_DATA", raising=False)
    first, again, other = (load("auto", 30, seed).texts for seed in (1, 1, 2))
    assert first == again != other


def test_the_mix_needs_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISTILBEAM_DATA", raising=False)
    with pytest.raises(ValueError, match="--corpus generated"):
        load("mix", 3)


def test_what_is_stored_is_what_was_given(tmp_path: Path) -> None:
    texts = ["", "ä\n", "a b"]
    assert pq.read_table(save(texts, tmp_path / "new" / "x.parquet")).to_pydict() == {"id": [0, 1, 2], "text": texts}


def written(data: Path) -> Path:
    for name in ("tweets", "agnews", "imdb"):
        (data / name).mkdir(parents=True)
    (data / "tweets/test.jsonl").write_text('{"text": "t1"}\n{"text": "t2"}\n')
    (data / "agnews/test.jsonl").write_text('{"title": "news", "text": "a1"}\n')
    save(["i1", "i2", "i3"], data / "imdb/part-0.parquet")
    return data


def test_the_mix_has_its_shares(tmp_path: Path) -> None:
    texts = mix(written(tmp_path), 9).texts
    kinds = [text[0] for text in texts]
    assert [kinds.count(kind) for kind in "tni"] == [5, 2, 2]
    assert {"t1", "t2", "news a1"} <= set(texts)
    assert sorted(kinds) != kinds


@pytest.mark.data
@pytest.mark.parametrize(("kind", "position"), [("tweets", 0), ("agnews", 1), ("imdb", 2)])
def test_the_table_of_lengths_is_that_of_the_real_corpora(data: Path, kind: str, position: int) -> None:
    from benchmarks import corpus

    texts = list((corpus._tweets, corpus._agnews, corpus._imdb)[position](data / kind))
    sample = np.random.default_rng(0).permutation(len(texts))[:2000]
    found = np.quantile(counts([texts[row] for row in sample]), corpus._QUANTILES)
    # Those in the middle; the ends hang on single texts.
    np.testing.assert_allclose(found[3:12], LENGTHS[kind][3:12], rtol=0.1)
