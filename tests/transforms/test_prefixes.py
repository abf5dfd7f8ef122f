"""Texts that are shortened have the tokens of the whole, against Hugging Face's own normalizer and tokenizer."""

import string
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers.normalizers import BertNormalizer

from distilbeam.transforms import prefixes, tokenization
from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer
from distilbeam.transforms.prefixes import _RUN, Beginning, shortened
from distilbeam.transforms.tokenization import tokenize
from tests.checkpoints import UNCASED_VOCABULARY, Checkpoints

_BETWEEN = [*" \t\n\r\0é\u0301\u0327\u200b\u3000中。、-'!_", "👩‍👩‍👧", "\u00ad", "İ", "ß", "が", "한", "the", " cat "]
_RUNS = st.tuples(st.sampled_from([*"aZ0éЖあ가 \n\0", "ab", "aB9", "  \t"]), st.integers(95, 130)).map(
    lambda run: run[0] * run[1]
)
_odd = st.lists(st.one_of(_RUNS, st.sampled_from(_BETWEEN)), max_size=12).map("".join)


@pytest.fixture(scope="module", params=["bare", "uncased_vocabulary", "cased"])
def tokenizer(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> WordPieceTokenizer:
    return WordPieceTokenizer.load(Path(getattr(checkpoints, request.param)), 100_000)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(text=_odd)
def test_a_shortened_text_has_the_same_tokens(tokenizer: WordPieceTokenizer, text: str) -> None:
    assert tokenizer.longest_word == 100
    short = shortened(text, tokenizer.longest_word)
    assert tokenizer.encode([short]) == tokenizer.encode([text])


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(text=_odd, more=_odd, times=st.integers(30, 300), max_length=st.sampled_from([3, 10, 60]))
def test_long_odd_texts_have_the_tokens_of_the_whole(
    tokenizer: WordPieceTokenizer, text: str, more: str, times: int, max_length: int
) -> None:
    whole = text + more * times
    ids = tokenizer.encode([whole])[0]
    for source in ([whole], pa.array([whole])):
        tokens = tokenize(source, tokenizer, max_length)
        assert tokens.ids.tolist() == [tokenizer.cls_id, *ids[: max_length - 2], tokenizer.sep_id]
        assert tokens.truncated.tolist() == [len(ids) > max_length - 2]


def test_what_is_shortened_stays_part_of_its_word() -> None:
    """Every character that counts as a letter leaves at least one that is neither white space nor nothing."""
    letters = [chr(code) for code in range(33, 0x110000) if not 0xD800 <= code < 0xE000 and _RUN.fullmatch(chr(code))]
    assert len(letters) > 11_000
    assert not set(letters) & set(string.punctuation)
    for lowercase in (True, False):
        for strip in (True, False, None):
            normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip)
            lines = normalizer.normalize_str("".join(f"|{letter}|" for letter in letters)).split("||")
            assert len(lines) == len(letters)
            assert all(line.strip("|").strip() and not any(map(str.isspace, line)) for line in lines)


@pytest.mark.parametrize("unit", ["a", "Ж", "あ", " ", "\0", "ab12", "word "])
def test_a_long_text_without_an_end_is_read_once(
    tokenizer: WordPieceTokenizer, unit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is looked at is counted, which no other work on the machine changes."""
    texts = pa.array([unit * (8_000_000 // len(unit.encode())), "the cat"])
    read: list[int] = []
    cut = shortened

    def counted(text: str, longest_word: int | None) -> str:
        read.append(len(text.encode()))
        return cut(text, longest_word)

    encoded: list[int] = []
    encode = tokenization.encode_by_word

    def noted(data: Any, *more: Any) -> Any:
        encoded.append(len(data))
        return encode(data, *more)

    monkeypatch.setattr(prefixes, "shortened", counted)
    monkeypatch.setattr(tokenization, "encode_by_word", noted)
    tokens = tokenize(texts, tokenizer, 64)
    assert sum(read) <= 8_000_000
    assert 0 < sum(encoded) < 100_000, "of a word without an end little is left"
    if unit != "word ":
        assert tokens.lengths[0] in (2, 3), "one unknown word, or none"
    assert tokens.lengths[1] == 4


def test_of_a_long_text_little_is_read(checkpoints: Checkpoints) -> None:
    tokenizer = WordPieceTokenizer.load(Path(checkpoints.bare), len(UNCASED_VOCABULARY))
    beginning = Beginning(pa.py_buffer(b"the cat " * 1_000_000 + b"\xff"), tokenizer)
    assert beginning.read(1024) == ("the cat " * 1000)[:1027]
    assert not beginning.whole
    assert beginning._position < 10_000


def test_text_that_is_no_utf8_fails_where_it_is_read(checkpoints: Checkpoints) -> None:
    tokenizer = WordPieceTokenizer.load(Path(checkpoints.bare), len(UNCASED_VOCABULARY))
    for data in (b"a" * 2000 + b"\xff", b"a" * 2000 + "é".encode()[:1]):
        with pytest.raises(UnicodeDecodeError):
            Beginning(pa.py_buffer(data), tokenizer).read(1024)
