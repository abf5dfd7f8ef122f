"""Every key and file of a checkpoint is heeded, refused, known to change nothing, or said."""

import logging
import re
import shutil
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from transformers import AutoConfig, AutoTokenizer, DistilBertConfig, DistilBertModel

from distilbeam.transforms import Embed, Encoder
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import UNCASED_VOCABULARY, Checkpoints, edit_json, save


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints.sentence, tmp_path / "model"))


@pytest.mark.parametrize("name", ["bare", "masked_lm", "classifier", "multi_label", "half", "cased", "sentence"])
def test_nothing_is_said_of_what_libraries_save(checkpoints: Checkpoints, name: str) -> None:
    assert Checkpoint.open(getattr(checkpoints, name)).unheeded == ()


def test_nothing_is_said_of_what_published_folders_have(folder: Path) -> None:
    for name in ("README.md", ".gitattributes", "LICENSE", "pytorch_model.bin", "tf_model.h5", "training_args.bin"):
        (folder / name).write_text("x")
    for name in ("onnx", "runs", ".git", "checkpoint-500"):
        (folder / name).mkdir()
    edit_json(folder / "config.json", torch_dtype="float32", tie_weights_=True, seq_classif_dropout=0.1, use_cache=True)
    edit_json(folder / "tokenizer_config.json", do_basic_tokenize=True, never_split=[], name_or_path="x")
    assert Checkpoint.open(str(folder)).unheeded == ()


def test_every_setting_of_the_library_is_known(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoints.bare, folder)
    every = DistilBertConfig.from_pretrained(folder).to_dict()
    every |= {"output_hidden_states": True, "problem_type": "regression", "bos_token_id": 3, "dtype": "float32"}
    edit_json(folder / "config.json", **{key: every[key] for key in every if every[key] is not None})
    assert Checkpoint.open(str(folder)).unheeded == ()


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("config.json", {"rope_theta": 1e4, "norm_first": True}, "config.json has settings .*: rope_theta, norm_first"),
        ("tokenizer_config.json", {"remove_digits": True}, "tokenizer_config.json has settings .*: remove_digits"),
        ("tokenizer_config.json", {"never_split": ["a"]}, "never_split"),
        ("tokenizer_config.json", {"do_basic_tokenize": False}, "do_basic_tokenize"),
        ("config_sentence_transformers.json", {"whitening": [1]}, "whitening"),
        ("sentence_bert_config.json", {"attention_sink": 4}, "attention_sink"),
        ("config.json", {f"unknown_{n}": n for n in range(9)}, "unknown_4 and 4 more"),
        (
            "mean_centering.json",
            {"a": 1},
            "has files that distilbeam does not know and does not read: mean_centering.json",
        ),
    ],
)
def test_what_is_not_known_is_said(folder: Path, file: str, changes: dict[str, Any], named: str) -> None:
    if not (folder / file).exists():
        (folder / file).write_text("{}")
    edit_json(folder / file, **changes)
    (said,) = Checkpoint.open(str(folder)).unheeded
    assert re.search(named.replace(".json", r"\.json"), said)


def test_it_is_said_once_a_job(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    edit_json(folder / "config.json", rope_theta=1e4)
    with caplog.at_level(logging.WARNING), beam.Pipeline("FnApiRunner") as p:
        _ = p | beam.Create([beam.Row(text="the cat")] * 9) | Embed(folder, device="cpu")
    assert sum("rope_theta" in record.getMessage() for record in caplog.records) == 1
    caplog.clear()
    Encoder.load(str(folder))
    assert [record.getMessage().count("rope_theta") for record in caplog.records] == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "the weights are quantized"),
        ({"pruned_heads": {"0": [1]}}, "heads were pruned"),
        ({"hidden_size": 12}, "dim is 48 and hidden_size, another name of it, 12"),
        ({"num_attention_heads": 2}, "n_heads is 4 and num_attention_heads"),
    ],
)
def test_settings_that_make_another_model_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


def test_an_adapter_beside_the_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json puts an adapter on the model"):
        Checkpoint.open(str(folder))


def test_sizes_have_the_names_that_transformers_knows(tmp_path: Path) -> None:
    sizes = {"dim": 24, "n_layers": 1, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 16}
    save(DistilBertModel(DistilBertConfig(vocab_size=len(UNCASED_VOCABULARY), **sizes)), tmp_path)
    names = {"dim": "hidden_size", "n_heads": "num_attention_heads", "n_layers": "num_hidden_layers"}
    for name, other in names.items():
        edit_json(tmp_path / "config.json", **{name: None, other: sizes[name]})
    theirs, ours = AutoConfig.from_pretrained(tmp_path), Checkpoint.open(str(tmp_path)).config
    assert (ours.dim, ours.n_heads, ours.n_layers) == (theirs.dim, theirs.n_heads, theirs.n_layers) == (24, 2, 1)


def test_an_old_name_of_the_length_is_heeded(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.bare, tmp_path / "model"))
    edit_json(folder / "tokenizer_config.json", model_max_length=None, max_len=9)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == Checkpoint.open(str(folder)).max_length == 9


@pytest.mark.parametrize("split", [True, False])
def test_special_tokens_are_split_where_the_folder_says_so(
    checkpoints: Checkpoints, tmp_path: Path, split: bool
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoints.bare)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<url>"]})
    tokenizer.add_tokens(["covid"])
    tokenizer.save_pretrained(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", split_special_tokens=split)
    texts = ["see <url> now covid"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)(texts, add_special_tokens=False)["input_ids"]
    assert WordPieceTokenizer.load(tmp_path, 1_000).encode(texts) == theirs


def test_a_tokenizer_that_cuts_on_the_left_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    shutil.copy(Path(checkpoints.bare, "tokenizer.json"), tmp_path)
    cut = {"direction": "Left", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    edit_json(tmp_path / "tokenizer.json", truncation=cut)
    with pytest.raises(CheckpointError, match="keeps the end of a long text"):
        WordPieceTokenizer.load(tmp_path, 1_000)
