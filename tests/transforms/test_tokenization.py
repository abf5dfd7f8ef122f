"""Token ids against Hugging Face's, on random Unicode and at the place where long texts are cut."""

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from distilbeam.transforms import tokenization
from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer
from distilbeam.transforms.prefixes import Beginning, buffer_of
from distilbeam.transforms.tokenization import Tokens, tokenize, tokenize_each
from distilbeam.transforms.words import KnownWords, encode_by_word
from tests.checkpoints import Checkpoints, hugging_face_ids, hugging_face_tokenizer, save_vocabulary

# What normalizers and pre-tokenizers treat each in its own way, and text that looks like tokens.
_PIECES = [
    *" \t\n\r\x0b\x0c\x00\x07\x1c\x1f\x7f\x85\xa0\xad\u1680\u2028\u2029\u200b\u200d\u202e\u3000\ufeff\ufffd",
    *"\u0301\u0327\u0338\u0345\u05b0\u0f71\u20dd\u302a\ufe0f\u1160",
    *"中国日本\u4dff\u4e00\u9fff\u3400\uf900\ufa0e語가한\u1100\u1161\u11a8\U00020000\U0002f800",
    *"éÉßẞſΣςσİıÅKØł\u0130ǅﬁ½①²αд",  # noqa: RUF001
    *"aBz09_-'!\"#@`~{|}[]^./:<>$+=。、«€©…",
    *(
        "[SEP]",
        "[CLS]",
        "[MASK]",
        "[PAD]",
        "[UNK]",
        "[sep]",
        "##ing",
        "the",
        "Cat",
        "film",
        "hello",
        "👩‍👩‍👧",
        "🇩🇪",
        "😀",
    ),
]
_WORDS = [*"aelthbé\u0301\u0327\u200b\x00가語ßİ", "hello", "film", "cat", "##", "👩‍👩‍👧"]
_texts = st.one_of(st.text(), st.lists(st.sampled_from(_PIECES), max_size=40).map("".join))
# Mostly pieces that do not end a word, so that a word seldom ends where a text might be cut.
_words = st.lists(st.one_of(*[st.sampled_from(_WORDS)] * 4, st.sampled_from(_PIECES)), min_size=8, max_size=40).map(
    "".join
)
# Few or no tokens each, so that the kept tokens lie around the cut.
_fillers = st.sampled_from([" ", "\x00", "\u200b", "\u0301", "a", "é", "\u3000", "中", "-", "a ", "\n\x00"])


@st.composite
def _long_texts(draw: st.DrawFn) -> str:
    """Texts whose first 1,024 characters, the shortest part that is read, end within a few random words."""
    head = (draw(_fillers) * 1024)[: 1024 - draw(st.integers(0, 12))]
    more = draw(st.sampled_from(["", " ", "a", "\u0301", "word "])) * draw(st.sampled_from([0, 40, 1800]))
    return head + draw(_words) + more + draw(st.sampled_from(["", " the cat", "!"]))


class Oracle:
    """Our tokenizer of a folder and Hugging Face's."""

    def __init__(self, folder: str) -> None:
        self.theirs = hugging_face_tokenizer(folder)
        self.ours = WordPieceTokenizer.load(Path(folder), len(self.theirs))

    def compare(self, texts: list[str], max_length: int) -> None:
        tokens = tokenize(texts, self.ours, max_length)
        expected = hugging_face_ids(self.theirs, texts, max_length)
        assert rows(tokens) == expected
        columnar = tokenize(pa.array(texts, pa.string()), self.ours, max_length)
        assert rows(columnar) == expected
        assert columnar.truncated.tolist() == tokens.truncated.tolist()
        more = hugging_face_ids(self.theirs, texts, max_length + 1)
        assert tokens.truncated.tolist() == [len(row) > max_length for row in more]


def rows(tokens: Tokens) -> list[list[int]]:
    return [ids.tolist() for ids in np.split(tokens.ids, tokens.offsets[1:-1])] if len(tokens) else []


@pytest.fixture(scope="module", params=["bare", "uncased_vocabulary", "cased"])
def oracle(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> Oracle:
    return Oracle(getattr(checkpoints, request.param))


@pytest.fixture
def uncased(checkpoints: Checkpoints) -> WordPieceTokenizer:
    return WordPieceTokenizer.load(Path(checkpoints.bare), 162)


_quick = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@_quick
@given(texts=st.lists(_texts, max_size=6), max_length=st.integers(3, 40))
@example(texts=["", " ", "\n\t ", "\x00", "\u0301", "[SEP]", "a [CLS] b [PAD][MASK]", "\u200b"], max_length=5)
@example(texts=["x" * 99, "x" * 100, "x" * 101, "é" * 100, "é" * 50 + "\u0301" * 60], max_length=40)
def test_ids_are_hugging_faces(oracle: Oracle, texts: list[str], max_length: int) -> None:
    oracle.compare(texts, max_length)


@settings(_quick, max_examples=60)
@given(texts=st.lists(_long_texts(), min_size=1, max_size=3), max_length=st.integers(3, 60))
def test_ids_of_long_texts_are_hugging_faces(oracle: Oracle, texts: list[str], max_length: int) -> None:
    oracle.compare(texts, max_length)


@settings(_quick, max_examples=250)
@given(text=_words, data=st.data())
def test_tokens_of_a_prefix_are_a_prefix_of_the_tokens(oracle: Oracle, text: str, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from([text, pa.py_buffer(text.encode())]))
    beginning = Beginning(source, oracle.ours)
    prefix = beginning.read(data.draw(st.integers(0, len(text) - 1)))
    assert text.startswith(prefix)
    assert beginning.whole == (prefix == text)
    some, whole = oracle.ours.encode([prefix, text])
    assert some == whole[: len(some)]


@pytest.mark.parametrize("form", [list, pa.array])
def test_long_texts_are_read_only_in_part(
    form: Any, uncased: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0

    def counting(data: Any, edges: Any, tokenizer: WordPieceTokenizer) -> Any:
        nonlocal read
        read += len(data)
        return encode_by_word(data, edges, tokenizer)

    monkeypatch.setattr(tokenization, "encode_by_word", counting)
    texts = form(["the cat sat on the mat " * 50_000, "the cat"])
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        tokens, rows, failed = tokenize_each(texts, uncased, 64)
    finally:
        pa.set_memory_pool(default)
    assert (tokens.lengths.tolist(), tokens.truncated.tolist()) == ([64, 4], [True, False])
    assert (rows.tolist(), failed) == ([0, 1], {})
    assert 400 < read < 5_000
    assert pool.max_memory() < 100_000, "no copy of the text is made"


def test_control_characters_that_a_tokenizer_keeps_are_read(tmp_path: Path) -> None:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\0", "##\0", "b", "##b", "a", "##a"]
    stored = Tokenizer(WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    stored.normalizer = BertNormalizer(clean_text=False)
    stored.pre_tokenizer = BertPreTokenizer()
    stored.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    stored.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    tokenizer = WordPieceTokenizer.load(tmp_path, len(tokens))
    for text in (" " * 5000 + "\0\0\0b", "\0\0a " * 500):
        expected = stored.encode(text, add_special_tokens=False).ids[:14]
        assert len(expected) > 3
        assert tokenize([text], tokenizer, 16).ids.tolist() == [2, *expected, 3]


def test_a_text_is_sliced_in_place() -> None:
    for kind in (pa.string(), pa.large_string()):
        texts = pa.array(["zero", "one", "", "é", "four"], kind).slice(1)
        found = [buffer_of(texts, row) for row in range(len(texts))]
        assert [bytes(part).decode() for part in found] == ["one", "", "é", "four"]
        data = texts.buffers()[2]
        assert all(data.address <= part.address <= data.address + data.size for part in found)


@pytest.mark.parametrize("separator", ["", "\u200b", "á"])
def test_a_long_text_without_a_place_to_cut_is_read_whole(oracle: Oracle, separator: str) -> None:
    oracle.compare([separator.join(["ab"] * 3_000), separator.join(["中"] * 3_000), "\u3000".join(["the"] * 3_000)], 8)


def test_shape_of_tokens(uncased: WordPieceTokenizer) -> None:
    tokens = tokenize(["the cat", "", "the " * 9], uncased, 6)
    assert (tokens.ids.dtype, tokens.offsets.dtype, tokens.truncated.dtype) == (np.int32, np.int64, np.bool_)
    assert tokens.lengths.tolist() == [4, 2, 6]
    assert tokens.truncated.tolist() == [False, False, True]
    assert len(tokens) == 3
    none = tokenize([], uncased, 6)
    assert (len(none), none.ids.tolist(), none.offsets.tolist(), none.lengths.tolist()) == (0, [], [0], [])


class Panic(BaseException):
    """Like a panic of the Rust tokenizer, no Exception."""


@pytest.fixture
def fragile(uncased: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A tokenizer that panics at texts with a bell, and the number of its calls."""
    encode = uncased.encode
    calls: list[int] = []

    def panicking(texts: list[str]) -> list[list[int]]:
        calls.append(len(texts))
        if any("\x07" in text for text in texts):
            raise Panic("the text: " + "".join(texts))
        return encode(texts)

    monkeypatch.setattr(uncased, "encode", panicking)
    return uncased, calls


@pytest.mark.parametrize("bad", [0, 1, 63, 64, 99])
def test_a_text_that_breaks_the_tokenizer_is_taken_out_alone(fragile: Any, bad: int) -> None:
    tokenizer, calls = fragile
    texts = ["the cat sat " * (i % 5) for i in range(100)]
    expected = rows(tokenize(texts, tokenizer, 16))
    tokenizer.known_words = KnownWords()
    calls.clear()
    texts[bad] = "private \x07 words"
    tokens, positions, failed = tokenize_each(texts, tokenizer, 16)
    assert failed == {bad: "Panic"}
    assert positions.tolist() == [i for i in range(100) if i != bad]
    assert rows(tokens) == [expected[i] for i in positions]
    assert len(calls) <= 2 * math.log2(100) + 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(bad=st.lists(st.booleans(), max_size=20))
def test_any_texts_may_break_the_tokenizer(fragile: Any, bad: list[bool]) -> None:
    tokenizer, _ = fragile
    texts = [f"{'the ' * i}{chr(7) * is_bad}" for i, is_bad in enumerate(bad)]
    good = [i for i, is_bad in enumerate(bad) if not is_bad]
    tokens, positions, failed = tokenize_each(texts, tokenizer, 16)
    assert sorted(failed) == [i for i, is_bad in enumerate(bad) if is_bad]
    assert positions.tolist() == good
    assert positions.dtype == np.int64
    assert rows(tokens) == rows(tokenize([texts[i] for i in good], tokenizer, 16))


def test_a_lone_surrogate_is_taken_out(uncased: WordPieceTokenizer) -> None:
    tokens, positions, failed = tokenize_each(["the", "\ud800", "cat"], uncased, 16)
    assert (list(failed), positions.tolist()) == ([1], [0, 2])
    assert rows(tokens) == rows(tokenize(["the", "cat"], uncased, 16))


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_bad_text(
    uncased: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    def interrupted(texts: list[str]) -> list[list[int]]:
        raise interrupt

    monkeypatch.setattr(uncased, "encode", interrupted)
    with pytest.raises(interrupt):
        tokenize_each(["the"], uncased, 16)


@pytest.fixture(scope="module", params=["uncased", "cased"])
def published(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """BERT's published vocabularies."""
    folder = tmp_path_factory.mktemp(request.param)
    source = data / "tokenizers" / f"bert-base-{request.param}"
    (folder / "config.json").write_text('{"model_type": "distilbert"}')
    if request.param == "uncased":
        shutil.copy(source / "tokenizer.json", folder)
    else:
        vocabulary = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
        save_vocabulary(folder, vocabulary, do_lower_case=False, tokenizer_class="DistilBertTokenizer")
    oracle = Oracle(str(folder))
    assert len(oracle.theirs) == {"uncased": 30_522, "cased": 28_996}[request.param]
    return oracle


def _corpus(data: Path, name: str) -> list[str]:
    if name == "imdb":
        return [text for path in sorted((data / name).glob("*.parquet")) for text in _texts_of(path)]
    if name == "books":
        return _texts_of(data / "books" / "books.parquet")
    if name == "blns":
        return json.loads((data / "hostile/blns/blns.json").read_text(encoding="utf-8"))
    with (data / name / "test.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _texts_of(path: Path) -> list[str]:
    return pq.read_table(path, columns=["text"])["text"].to_pylist()


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("name", "count"), [("imdb", 25_000), ("agnews", 7_600), ("tweets", 12_284), ("books", 24), ("blns", 515)]
)
def test_ids_of_real_texts_are_hugging_faces(published: Oracle, data: Path, name: str, count: int) -> None:
    texts = _corpus(data, name)
    assert len(texts) == count
    for start in range(0, count, 1_000):
        chunk = texts[start : start + 1_000]
        assert rows(tokenize(chunk, published.ours, 512)) == hugging_face_ids(published.theirs, chunk, 512)


@pytest.mark.data
@pytest.mark.parametrize("max_length", [3, 17, 128, 1_000_000])
def test_ids_of_real_texts_of_any_length_are_hugging_faces(published: Oracle, data: Path, max_length: int) -> None:
    texts = [*_corpus(data, "blns"), *_corpus(data, "tweets")[:500], *_corpus(data, "imdb")[:100]]
    texts += [book[:50_000] for book in _corpus(data, "books")[:5]]
    published.compare(texts, max_length)
