"""Tokens of the user's own have the ids that transformers gives by default, wherever a folder keeps them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from distilbeam.transforms.distilbert.tokenizer import TokenizerFiles, WordPieceTokenizer
from distilbeam.transforms.errors import CheckpointError
from distilbeam.transforms.tokenization import tokenize
from tests.checkpoints import CASED_VOCABULARY, UNCASED_VOCABULARY, edit_json, save_tokenizer, save_vocabulary

_quick = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
SIZE = len(CASED_VOCABULARY) + 50
# Every flag, in the vocabulary and not, with white space, accents and ideographs, one in another, one full of dots.
OWN = [
    AddedToken("[E1]", special=True),
    AddedToken("[/E1]", special=True),
    AddedToken("<url>", special=True, lstrip=True, rstrip=True),
    AddedToken("covid19"),
    AddedToken("@Handle", normalized=True),
    AddedToken("New  York", normalized=False, single_word=True),
    AddedToken("Café", normalized=True, rstrip=True),
    AddedToken("cat", single_word=True),
    AddedToken(". .", normalized=False),
    AddedToken("日本", normalized=True),
    AddedToken("[E1][/E1]", normalized=False, lstrip=True),
]
_PIECES = [*(token.content for token in OWN), "COVID19", "@handle", "CAFE", "cafe\u0301", "Cafe", "new  york", "Cat"]
_PIECES += [
    " ",
    "  ",
    "\n",
    "\t ",
    "\x00",
    "\x0b",
    "the",
    "sat",
    "wor",
    "ing",
    ".",
    " . ",
    "[",
    "]",
    "/",
    "<",
    "E1",
    "é",
    "中国",
    "ß",
]
_texts = st.lists(st.lists(st.sampled_from(_PIECES), max_size=25).map("".join), min_size=1, max_size=5)


def _json(folder: Path, vocabulary: list[str], lowercase: bool) -> None:
    """As save_pretrained of transformers 5."""
    save_tokenizer(folder, vocabulary, do_lower_case=lowercase)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [token for token in OWN if token.special]})
    tokenizer.add_tokens([token for token in OWN if not token.special])
    tokenizer.save_pretrained(folder)


def _decoder(folder: Path, vocabulary: list[str], lowercase: bool) -> None:
    """As save_pretrained of a slow tokenizer in transformers 4.34 and later."""
    decoder = {}
    place = len(vocabulary)
    for token in OWN:
        number = vocabulary.index(token.content) if token.content in vocabulary else place
        place += number == place
        decoder[str(number)] = token.__getstate__()
    extra = [token.content for token in OWN if token.special]
    save_vocabulary(
        folder, vocabulary, do_lower_case=lowercase, added_tokens_decoder=decoder, additional_special_tokens=extra
    )


def _numbers(folder: Path, vocabulary: list[str], lowercase: bool) -> None:
    """As save_pretrained of a slow tokenizer in transformers 2, 3 and early 4."""
    save_vocabulary(folder, vocabulary, do_lower_case=lowercase)
    new = [token.content for token in OWN if token.content not in vocabulary]
    numbers = {content: len(vocabulary) + place for place, content in enumerate(new)}
    (folder / "added_tokens.json").write_text(json.dumps(dict(reversed(numbers.items()))))
    special = {
        "unk_token": {"content": "[UNK]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False},
        "cls_token": "[CLS]",
        "extra_special_tokens": ["[E1]", "[/E1]", "<url>"],
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))


def _lacking(folder: Path, vocabulary: list[str], lowercase: bool) -> None:
    """A tokenizer.json that does not know what tokenizer_config.json names."""
    save_tokenizer(folder, vocabulary, do_lower_case=lowercase)
    edit_json(folder / "tokenizer_config.json", additional_special_tokens=["[E1]", "[/E1]"], image_token="<url>")


KINDS: list[Callable[[Path, list[str], bool], None]] = [_json, _decoder, _numbers, _lacking]


def _named(kind: tuple[Callable[..., None], bool]) -> str:
    return f"{kind[0].__name__.lstrip('_')}-{'uncased' if kind[1] else 'cased'}"


@pytest.fixture(scope="module", params=[(kind, lower) for kind in KINDS for lower in (True, False)], ids=_named)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[WordPieceTokenizer, Any]:
    kind, lowercase = request.param
    folder = tmp_path_factory.mktemp("added")
    (folder / "config.json").write_text('{"model_type": "distilbert"}')
    kind(folder, UNCASED_VOCABULARY if lowercase else CASED_VOCABULARY, lowercase)
    return WordPieceTokenizer.load(folder, SIZE), AutoTokenizer.from_pretrained(folder)


@_quick
@given(texts=_texts, length=st.integers(3, 30), arrow=st.booleans(), times=st.sampled_from([1, 1, 60]))
def test_ids_are_those_of_transformers(
    pair: tuple[WordPieceTokenizer, Any], texts: list[str], length: int, arrow: bool, times: int
) -> None:
    ours, theirs = pair
    texts = [text * times for text in texts]  # of some only the beginning is read
    expected = theirs(texts, truncation=True, max_length=length)["input_ids"]
    found = tokenize(pa.array(texts) if arrow else texts, ours, length)
    assert [found.ids[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)] == expected


def test_markers_are_found(pair: tuple[WordPieceTokenizer, Any]) -> None:
    ours, theirs = pair
    ids = theirs.convert_tokens_to_ids(["[E1]", "[/E1]", "<url>"])
    assert len(set(ids)) == 3
    assert min(ids) > len(UNCASED_VOCABULARY) - 1
    assert set(ids) <= set(ours.encode(["[E1] the [/E1] <url>"])[0])
    assert ours.splits_words


def test_control_tokens_beside_them_are_text(pair: tuple[WordPieceTokenizer, Any]) -> None:
    ours, theirs = pair
    state = json.loads(theirs.backend_tokenizer.to_str())
    control = {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"}
    state["added_tokens"] = [{**token, "special": token["content"] in control} for token in state["added_tokens"]]
    oracle = Tokenizer.from_str(json.dumps(state))
    oracle.encode_special_tokens = True
    oracle.no_truncation()
    texts = [f"{a}{b} {c}the{a}" for a in control for b in ("[E1]", "<url>", " covid19") for c in control]
    assert ours.encode(texts) == [oracle.encode(text, add_special_tokens=False).ids for text in texts]
    assert not any({ours.cls_id, ours.sep_id} & set(row) for row in ours.encode(texts))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    save_vocabulary(tmp_path, UNCASED_VOCABULARY, do_lower_case=True)
    return tmp_path


COUNT = len(UNCASED_VOCABULARY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"<url>": COUNT + 3}, rf"gives the added token '<url>' the id {COUNT + 3}, and after .* comes to {COUNT}"),
        ({"<url>": 7}, r"gives the added token '<url>' the id 7"),
        ({"<url>": COUNT + 50}, rf"added_tokens\.json has ids up to {COUNT + 50}, the model's vocabulary ends"),
        ({"<url>": -1}, "an added token has the id -1"),
        ({"<url>": "x"}, "an added token has the id 'x'"),
        ({"<url>": 1.5}, "an added token has the id 1.5"),
        ([], r"added_tokens\.json is not a JSON object"),
    ],
)
def test_an_id_that_versions_read_differently_is_refused(folder: Path, content: Any, message: str) -> None:
    (folder / "added_tokens.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        WordPieceTokenizer.load(folder, COUNT + 50)


@pytest.mark.parametrize("decoder", [[], {"x": {"content": "a"}}, {"7": 3}, {"7": {"lstrip": True}}, {"7": None}])
def test_a_damaged_decoder_is_refused(folder: Path, decoder: Any) -> None:
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(CheckpointError, match=r"added_tokens_decoder is not|an added token has"):
        WordPieceTokenizer.load(folder, COUNT + 50)


def test_a_token_that_only_one_file_knows_is_refused_where_versions_differ(folder: Path) -> None:
    _json(folder, UNCASED_VOCABULARY, True)
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={"0": {"content": "[PAD]", "special": True}})
    edit_json(folder / "tokenizer_config.json", extra_special_tokens=None)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json has the added token 'cat', and added_tokens_decoder"):
        WordPieceTokenizer.load(folder, SIZE)


def test_files_that_say_nothing_new_do_not_count(folder: Path) -> None:
    names = ["vocab.txt", "tokenizer_config.json"]
    for special in ({"cls_token": "[CLS]"}, {"mask_token": {"content": "[MASK]", "lstrip": False}}, {}):
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        (folder / "added_tokens.json").write_text("{}")
        assert [path.name for path in TokenizerFiles.read(folder).paths] == names
    (folder / "special_tokens_map.json").write_text('{"additional_special_tokens": ["<url>"]}')
    (folder / "added_tokens.json").write_text(json.dumps({"<url>": COUNT}))
    more = [path.name for path in TokenizerFiles.read(folder).paths]
    assert more == [*names, "special_tokens_map.json", "added_tokens.json"]
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={})
    assert [path.name for path in TokenizerFiles.read(folder).paths] == names


def test_many_added_words(folder: Path) -> None:
    words = [f"drug{number:05}name" for number in range(2_000)]
    numbers = {word: COUNT + place for place, word in enumerate(words)}
    (folder / "added_tokens.json").write_text(json.dumps(numbers))
    texts = [f"the {words[5]} cat {words[-1].upper()}", "no such thing"]
    theirs = AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False)["input_ids"]
    assert WordPieceTokenizer.load(folder, COUNT + 2_000).encode(texts) == theirs
