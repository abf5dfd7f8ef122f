"""Settings of sentence-transformers folders, written by sentence-transformers and by hand."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.sentence import SENTENCE_FILES, SentenceSettings, read_sentence_settings
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import Checkpoints, edit_json


def modules(folder: Path, *kinds: str, paths: list[str] | None = None) -> Path:
    """modules.json with modules of these classes."""
    paths = paths or ["" if kind == "Transformer" else f"{index}_{kind}" for index, kind in enumerate(kinds)]
    content = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(content))
    return folder


def pooling(folder: Path, **config: Any) -> Path:
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    return folder


def test_a_plain_folder_has_plain_defaults(tmp_path: Path) -> None:
    assert read_sentence_settings(tmp_path) == SentenceSettings("", "mean", False, None)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalize", [False, True])
def test_what_sentence_transformers_saved_is_understood(checkpoints: Checkpoints, mode: str, normalize: bool) -> None:
    folder = checkpoints.sentence_folder(f"saved-{mode}-{normalize}", mode, normalize=normalize, max_length=20)
    found = Checkpoint.open(folder)
    assert found.sentence.unsupported is None
    assert (found.sentence.pooling, found.sentence.normalize) == (mode, normalize)
    assert found.max_length == 20


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["cls"]}, "cls"),
        ({"pooling_mode": ["max", "cls"]}, "max+cls"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, "cls+mean"),
        ({"pooling_mode_mean_tokens": False}, "mean"),
        ({}, "mean"),
    ],
)
def test_older_poolings_are_understood(tmp_path: Path, config: dict[str, Any], expected: str) -> None:
    found = read_sentence_settings(pooling(modules(tmp_path, "Transformer", "Pooling"), **config))
    assert (found.pooling, found.unsupported) == (expected, None)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "lasttoken"}, "it pools by lasttoken"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "it pools by mean_sqrt_len_tokens"),
        ({"pooling_mode": ["mean", "weightedmean"]}, r"it pools by mean\+weightedmean"),
        ({"pooling_mode": ["mean", "mean"]}, r"it pools by mean\+mean"),
    ],
)
def test_other_poolings_are_named(tmp_path: Path, config: dict[str, Any], named: str) -> None:
    found = read_sentence_settings(pooling(modules(tmp_path, "Transformer", "Pooling"), **config))
    assert found.unsupported is not None
    assert re.match(named, found.unsupported)


@pytest.mark.parametrize(
    "kinds",
    [
        ("Transformer", "Pooling", "Dense"),
        ("Transformer", "Pooling", "Dense", "Normalize"),
        ("Transformer", "Normalize", "Pooling"),
        ("Transformer",),
        ("WordEmbeddings", "Pooling"),
    ],
)
def test_other_modules_are_named(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    if "Pooling" in kinds:
        index = kinds.index("Pooling")
        (tmp_path / f"{index}_Pooling").mkdir()
        (tmp_path / f"{index}_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    found = read_sentence_settings(modules(tmp_path, *kinds))
    assert found.unsupported is not None
    assert " > ".join(kinds) in found.unsupported


def test_the_transformer_may_lie_in_a_folder_of_its_own(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(checkpoints.bare, tmp_path / "0_Transformer")
    (tmp_path / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 9}')
    paths = ["0_Transformer", "1_Pooling"]
    pooling(modules(tmp_path, "Transformer", "Pooling", paths=paths), pooling_mode_mean_tokens=True)
    found = Checkpoint.open(str(tmp_path))
    assert (found.folder, found.max_length) == (tmp_path / "0_Transformer", 9)


@pytest.mark.parametrize("path", ["../other", "/etc", "a/../../b"])
def test_modules_lie_inside_the_folder(tmp_path: Path, path: str) -> None:
    modules(tmp_path, "Transformer", "Pooling", paths=[path, "1_Pooling"])
    with pytest.raises(CheckpointError, match=r"modules\.json' names a folder outside|modules\.json names a folder"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "3", '["Transformer"]', "[[]]"])
def test_damaged_modules_are_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "modules.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"modules\.json is "):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_damaged_pooling_is_refused(tmp_path: Path, content: str | None) -> None:
    modules(tmp_path, "Transformer", "Pooling")
    if content is not None:
        pooling(tmp_path)
        (tmp_path / "1_Pooling" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"1_Pooling.config\.json is "):
        read_sentence_settings(tmp_path)


def test_a_prompt_put_before_every_text_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.sentence, tmp_path / "model")
    assert read_sentence_settings(folder).unsupported is None
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "find: "}, default_prompt_name="query")
    assert "prompt 'query'" in str(read_sentence_settings(folder).unsupported)


def test_lowercasing_before_a_cased_tokenizer_is_named(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.sentence, tmp_path / "model")
    edit_json(folder / "sentence_bert_config.json", do_lower_case=True)
    assert read_sentence_settings(folder).unsupported is None
    edit_json(folder / "tokenizer_config.json", do_lower_case=False)
    assert "lowercases" in str(read_sentence_settings(folder).unsupported)


@pytest.mark.parametrize("mode", [3, [], [3], {}])
def test_a_pooling_that_is_no_name_is_refused(tmp_path: Path, mode: Any) -> None:
    pooling(modules(tmp_path, "Transformer", "Pooling"), pooling_mode=mode)
    with pytest.raises(CheckpointError, match=r"config\.json: pooling_mode is .*; it must be a name or a list"):
        read_sentence_settings(tmp_path)


LENGTHS: list[tuple[dict[str, Any], int | None]] = [
    ({"max_seq_length": 20}, 20),
    ({"max_seq_length": 20, "processing_kwargs": {"text": {"max_length": 9}}}, 9),
    ({"processing_kwargs": {"common": {"max_length": 9}}}, 9),
    ({"processing_kwargs": {"text": {"truncation": True, "padding": True}}}, None),
    ({"tokenizer_args": {"model_max_length": 11}}, 11),
    ({"max_seq_length": None}, None),
]


@pytest.mark.parametrize("name", SENTENCE_FILES)
@pytest.mark.parametrize(("content", "expected"), LENGTHS)
def test_lengths_are_read_from_every_file_and_by_every_name(
    tmp_path: Path, name: str, content: dict[str, Any], expected: int | None
) -> None:
    pooling(modules(tmp_path, "Transformer", "Pooling"), pooling_mode="mean")
    (tmp_path / name).write_text(json.dumps(content))
    found = read_sentence_settings(tmp_path)
    assert (found.max_length, found.unsupported) == (expected, None)


@pytest.mark.parametrize(("content", "expected"), LENGTHS)
@pytest.mark.parametrize("name", ["sentence_bert_config.json", "sentence_xlm-roberta_config.json"])
def test_lengths_are_those_of_sentence_transformers(
    checkpoints: Checkpoints, tmp_path: Path, content: dict[str, Any], expected: int | None, name: str
) -> None:
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(checkpoints.sentence, tmp_path / "model")
    (folder / "sentence_bert_config.json").unlink()
    (folder / name).write_text(json.dumps(content))
    edit_json(folder / "tokenizer_config.json", model_max_length=40)
    features = SentenceTransformer(str(folder), device="cpu").preprocess(["the " * 99])
    assert Checkpoint.open(str(folder)).max_length == len(features["input_ids"][0]) == (expected or 40)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"processing_kwargs": {"text": {"truncation": False}}}, "truncation to False"),
        ({"processing_kwargs": {"text": {"add_special_tokens": False}}}, "processing_kwargs.text set add_special_toke"),
        ({"tokenizer_args": {"do_lower_case": False}}, "tokenizer_args set do_lower_case"),
        ({"transformer_task": "fill-mask"}, "transformer_task is 'fill-mask'"),
    ],
)
def test_other_settings_of_the_transformer_are_named(tmp_path: Path, content: dict[str, Any], named: str) -> None:
    pooling(modules(tmp_path, "Transformer", "Pooling"), pooling_mode="mean")
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(content))
    assert named in str(read_sentence_settings(tmp_path).unsupported)


@pytest.mark.parametrize("limit", [0, -1, 2, "12", True])
def test_a_length_that_is_none_is_refused(tmp_path: Path, limit: Any) -> None:
    pooling(modules(tmp_path, "Transformer", "Pooling"), pooling_mode="mean")
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": limit}))
    with pytest.raises(CheckpointError, match=r"sentence_bert_config\.json: a text's most tokens are"):
        read_sentence_settings(tmp_path)


@pytest.mark.parametrize("dimensions", [0, -3, 1.5, "16", True])
def test_a_truncate_dim_that_is_no_number_is_refused(tmp_path: Path, dimensions: Any) -> None:
    pooling(modules(tmp_path, "Transformer", "Pooling"), pooling_mode="mean")
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps({"truncate_dim": dimensions}))
    with pytest.raises(CheckpointError, match="truncate_dim is"):
        read_sentence_settings(tmp_path)


def test_setting_pooling_is_no_cure_for_modules_after_it(tmp_path: Path) -> None:
    folder = pooling(modules(tmp_path, "Transformer", "Pooling", "Dense"), pooling_mode="mean")
    assert "another model's" in read_sentence_settings(folder).cure
