"""Building the tokenizer: the same settings from every kind of folder, and clear refusals."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from distilbeam.transforms.distilbert.tokenizer import TokenizerFiles, WordPieceTokenizer
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import (
    CASED_VOCABULARY,
    UNCASED_VOCABULARY,
    Checkpoints,
    edit_json,
    hugging_face_tokenizer,
    save_tokenizer,
    save_vocabulary,
)

TEXTS = ["The Cat sat", "Café naïve É", "中国 日本語", "[SEP] [MASK] ## ##ing", "A\u0301 \x00 b", "", "İß 😀"]


def ids(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Our ids and Hugging Face's, without special tokens."""
    theirs = hugging_face_tokenizer(folder)
    ours = WordPieceTokenizer.load(folder, len(theirs))
    expected = theirs(TEXTS, split_special_tokens=True)["input_ids"]
    assert {(row[0], row[-1]) for row in expected} == {(ours.cls_id, ours.sep_id)}
    return ours.encode(TEXTS), [row[1:-1] for row in expected]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text('{"model_type": "distilbert"}')
    return tmp_path


@pytest.mark.parametrize("name", [None, "DistilBertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True},
        {"strip_accents": False},
        {"tokenize_chinese_chars": False},
    ],
)
@pytest.mark.parametrize("lowercase", [True, False])
def test_settings_come_from_where_hugging_face_takes_them(
    folder: Path, name: str | None, settings: dict[str, Any], lowercase: bool
) -> None:
    save_tokenizer(folder, CASED_VOCABULARY, do_lower_case=lowercase)
    (folder / "tokenizer_config.json").write_text("{}")
    edit_json(folder / "tokenizer_config.json", tokenizer_class=name, **settings)
    ours, theirs = ids(folder)
    assert ours == theirs


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": False, "strip_accents": True, "tokenizer_class": "DistilBertTokenizer"},
        {"strip_accents": False, "tokenize_chinese_chars": False},
        {"strip_accents": None, "never_split": None},
    ],
)
@pytest.mark.parametrize("vocabulary", [UNCASED_VOCABULARY, CASED_VOCABULARY])
def test_a_vocabulary_file_gives_hugging_faces_ids(
    folder: Path, settings: dict[str, Any], vocabulary: list[str]
) -> None:
    save_vocabulary(folder, vocabulary, **settings)
    ours, theirs = ids(folder)
    assert ours == theirs


def test_lines_of_a_vocabulary_file_may_end_as_on_windows(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes("\r\n".join(UNCASED_VOCABULARY).encode())
    ours, theirs = ids(folder)
    assert ours == theirs


def test_special_tokens_of_other_names(folder: Path) -> None:
    vocabulary = ["<s>" if token == "[CLS]" else "</s>" if token == "[SEP]" else token for token in UNCASED_VOCABULARY]
    save_vocabulary(folder, vocabulary, cls_token="<s>", sep_token={"content": "</s>", "__type": "AddedToken"})
    ours = WordPieceTokenizer.load(folder, len(vocabulary))
    assert (ours.cls_id, ours.sep_id) == (vocabulary.index("<s>"), vocabulary.index("</s>"))


def test_stored_truncation_and_padding_are_put_aside(folder: Path) -> None:
    save_tokenizer(folder)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.enable_truncation(4)
    stored.enable_padding(length=9)
    stored.save(str(folder / "tokenizer.json"))
    tokenizer = WordPieceTokenizer.load(folder, 1_000)
    assert [len(row) for row in tokenizer.encode(["the cat sat on the mat", "a"])] == [6, 1]


def test_texts_that_may_hold_words_added_to_the_vocabulary_are_known(folder: Path, checkpoints: Checkpoints) -> None:
    shutil.copy(Path(checkpoints.bare, "tokenizer.json"), folder)
    assert not WordPieceTokenizer.load(folder, 1_000).markers
    added = Tokenizer.from_file(str(folder / "tokenizer.json"))
    added.add_tokens([AddedToken("the cat", normalized=False)])
    added.save(str(folder / "tokenizer.json"))
    tokenizer = WordPieceTokenizer.load(folder, 1_000)
    assert tokenizer.splits_words
    assert tokenizer.markers.possible(["a the cat", "the", "cat", ""]).tolist() == [True, False, False, False]


def test_ideographs_are_words_only_where_the_tokenizer_splits_them(folder: Path) -> None:
    save_vocabulary(folder, UNCASED_VOCABULARY, tokenize_chinese_chars=False)
    tokenizer = WordPieceTokenizer.load(folder, 1_000)
    assert (tokenizer.splits_words, tokenizer.splits_ideographs) == (True, False)


def test_the_files_that_determine_the_tokenizer(folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor vocab\.txt"):
        TokenizerFiles.read(folder)
    save_vocabulary(folder, UNCASED_VOCABULARY)
    assert [path.name for path in TokenizerFiles.read(folder).paths] == ["vocab.txt"]
    save_vocabulary(folder, UNCASED_VOCABULARY, do_lower_case=False)
    assert [path.name for path in TokenizerFiles.read(folder).paths] == ["vocab.txt", "tokenizer_config.json"]
    save_tokenizer(folder)
    assert [path.name for path in TokenizerFiles.read(folder).paths] == ["tokenizer.json", "tokenizer_config.json"]


def test_ids_beyond_the_models_vocabulary_are_refused(folder: Path) -> None:
    save_tokenizer(folder)
    size = len(UNCASED_VOCABULARY)
    WordPieceTokenizer.load(folder, size)
    with pytest.raises(CheckpointError, match=f"ids up to {size - 1}, the model's vocabulary ends at {size - 2}"):
        WordPieceTokenizer.load(folder, size - 1)


def test_truncation_on_the_left_is_refused(folder: Path) -> None:
    save_vocabulary(folder, UNCASED_VOCABULARY, truncation_side="left")
    with pytest.raises(CheckpointError, match="keeps the end of a long text"):
        WordPieceTokenizer.load(folder, len(UNCASED_VOCABULARY))


@pytest.mark.parametrize("content", ["", "{", "{}", '{"model": 3}', "[]"])
def test_a_damaged_tokenizer_is_refused(folder: Path, content: str) -> None:
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*tokenizer\.json"):
        WordPieceTokenizer.load(folder, 1_000)


@pytest.mark.parametrize("vocabulary", [[], ["a", "b"], [token for token in UNCASED_VOCABULARY if token != "[SEP]"]])
def test_a_vocabulary_file_without_special_tokens_is_refused(folder: Path, vocabulary: list[str]) -> None:
    save_vocabulary(folder, vocabulary)
    with pytest.raises(CheckpointError, match=r"lacks the (unk|sep)_token '\[(UNK|SEP)\]'"):
        WordPieceTokenizer.load(folder, 1_000)


def test_a_vocabulary_file_that_is_not_utf8_is_refused(folder: Path) -> None:
    (folder / "vocab.txt").write_bytes(b"\xff\xfe\n")
    with pytest.raises(CheckpointError, match=r"cannot read the tokenizer .*vocab\.txt"):
        WordPieceTokenizer.load(folder, 1_000)


@pytest.mark.parametrize("template", ["$A", "[CLS] $A", "[CLS] $A [SEP] [SEP]", "[CLS] $A $A [SEP]"])
def test_another_shape_of_special_tokens_is_refused(folder: Path, template: str) -> None:
    save_tokenizer(folder)
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    stored.post_processor = TemplateProcessing(single=template, pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    stored.save(str(folder / "tokenizer.json"))
    with pytest.raises(CheckpointError, match="does not put one token before and one after"):
        WordPieceTokenizer.load(folder, 1_000)
