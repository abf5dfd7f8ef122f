"""Ids put together from words are those of whole texts, by Hugging Face's tokenizer itself."""

import threading
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from distilbeam.transforms import words
from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer
from distilbeam.transforms.words import KnownWords, encode_by_word, gather, ragged
from tests.checkpoints import UNCASED_VOCABULARY, Checkpoints, save_vocabulary

_quick = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
# Around boundaries stand characters that reach over others: accents, joiners, what decomposes to ASCII punctuation.
_ODD = [*" .,-'=<;`\t\n\r\x0b\x0c\0\x07\x1c\x7f\x85", *"\u0301\u0338\u0345\u200d\ufe0f\u00ad\u1160\u3099\u20dd"]
_ODD += [
    *"\u037e\u1fef\u212a\u226e\u2260\u2024\ufe52\uff0e。、Σσς中가\u1100\u1161éßİ",
    "the",
    "[SEP]",
    "##ing",
    "x" * 101,
]
_texts = st.lists(st.one_of(st.text(), st.lists(st.sampled_from(_ODD), max_size=30).map("".join)), max_size=6)


@pytest.fixture(scope="module", params=["bare", "uncased_vocabulary", "cased"])
def tokenizer(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> WordPieceTokenizer:
    return WordPieceTokenizer.load(Path(getattr(checkpoints, request.param)), 100_000)


def by_word(texts: list[str], tokenizer: WordPieceTokenizer) -> list[list[int]]:
    parts = [text.encode() for text in texts]
    edges = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    ids, offsets = encode_by_word(np.frombuffer(b"".join(parts), np.uint8), edges, tokenizer)
    assert (ids.dtype, offsets.dtype, len(offsets)) == (np.int32, np.int64, len(texts) + 1)
    return [ids[start:stop].tolist() for start, stop in pairwise(offsets)]


@_quick
@given(texts=_texts, forget=st.booleans())
@example(texts=["", " ", "", "a", "", "\n", ".", ""], forget=True)
@example(texts=["ab", "c", " d", "e ", "\u0301", "f"], forget=False)
def test_words_have_the_ids_of_the_text(tokenizer: WordPieceTokenizer, texts: list[str], forget: bool) -> None:
    if forget:
        tokenizer.known_words = KnownWords()
    expected = tokenizer.encode(texts)
    assert by_word(texts, tokenizer) == expected
    assert by_word(texts, tokenizer) == expected


def test_every_character_between_letters_and_marks(tokenizer: WordPieceTokenizer) -> None:
    codes = [*range(0x3100), *range(0xA000, 0xB000), *range(0xF900, 0x10000), *range(0x1D100, 0x1D200)]
    texts = [f"a{chr(code)}.{chr(code)}\u0301 {chr(code)}" for code in codes]
    assert by_word(texts, tokenizer) == tokenizer.encode(texts)


def test_no_other_character_becomes_a_stop() -> None:
    from tokenizers.normalizers import BertNormalizer

    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    for lowercase in (True, False):
        for strip in (True, False, None):
            normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip)
            assert normalizer.normalize_str("".join(every)).count(".") == 1


def test_a_vocabulary_without_a_stop(tmp_path: Path) -> None:
    vocabulary = [token for token in UNCASED_VOCABULARY if token != "."]
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    save_vocabulary(tmp_path, vocabulary)
    tokenizer = WordPieceTokenizer.load(tmp_path, len(vocabulary))
    assert tokenizer.stop_id is None
    texts = ["the cat. sat", "...", "§ .", ""]
    assert by_word(texts, tokenizer) == tokenizer.encode(texts)


def test_each_distinct_word_is_encoded_once(tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.known_words = KnownWords()
    encode, given = tokenizer.encode, []

    def spying(texts: list[str]) -> list[list[int]]:
        given.extend(texts)
        return encode(texts)

    monkeypatch.setattr(tokenizer, "encode", spying)
    by_word(["the cat, the\ncat", "cat the"], tokenizer)
    assert sorted(" ".join(given).split()) == sorted(["the", "cat", ",", ".", "."])
    given.clear()
    by_word(["cat", "the cat hello"], tokenizer)
    assert given == ["hello"]


def test_words_are_kept_up_to_a_number(tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.known_words = KnownWords()
    monkeypatch.setattr(words, "_MOST", 10)
    for start in range(0, 60, 7):
        texts = [" ".join(f"w{number}" for number in range(start, start + 9)), "y" * 65]
        assert by_word(texts, tokenizer) == tokenizer.encode(texts)
        assert 0 < len(tokenizer.known_words.numbers) <= 10
        assert max(map(len, tokenizer.known_words.numbers)) < 65
    many = [" ".join(f"v{number}" for number in range(30))]
    assert by_word(many, tokenizer) == tokenizer.encode(many)
    assert len(tokenizer.known_words.numbers) == 10


def test_words_that_hardly_repeat_are_not_kept(tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.known_words = KnownWords()
    monkeypatch.setattr(words, "_MANY", 20)
    texts = [" ".join(f"w{number}" for number in range(start, start + 9)) for start in range(0, 60, 7)]
    assert by_word(texts, tokenizer) == tokenizer.encode(texts)
    assert not tokenizer.known_words.numbers
    texts = ["the cat sat. " * 40]
    assert by_word(texts, tokenizer) == tokenizer.encode(texts)
    assert tokenizer.known_words.numbers


def test_threads_share_the_words(tokenizer: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer.known_words = KnownWords()
    monkeypatch.setattr(words, "_MOST", 300)
    wrong: list[str] = []

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(30):
            texts = [" ".join(f"{chr(97 + n % 26)}{n}" for n in random.integers(0, 400, 20)) for _ in range(5)]
            if by_word(texts, tokenizer) != tokenizer.encode(texts):
                wrong.extend(texts)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8), data=st.data())
def test_stretches_are_gathered(rows: list[list[int]], data: st.DataObject) -> None:
    ids, offsets = ragged(rows)
    picks = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else [], dtype=np.int64)
    found, edges = gather(ids, offsets[picks], offsets[picks + 1])
    assert [part.tolist() for part in np.split(found, edges[1:-1])][: len(picks)] == [rows[pick] for pick in picks]
    assert edges.tolist() == [0, *np.cumsum([len(rows[pick]) for pick in picks])]
