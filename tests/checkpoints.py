"""Small random DistilBERT folders, written by Hugging Face's own classes."""

import json
import string
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PreTrainedModel,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_LOWER = string.ascii_lowercase + string.digits + "éßñ中国日本語αβгд"
_PUNCTUATION = string.punctuation + "。、«»€£©…—"
_WORDS = [
    *("the", "cat", "sat", "on", "mat", "good", "bad", "film", "hello", "wor", "naive", "cafe"),
    *("sep", "cls", "mask", "unk", "##ing", "##ed", "##er", "##ld"),
]
_CASED = ["The", "Cat", "Hello", "Café", "SEP", "CLS", "MASK", "UNK", "##ING"]
UNCASED_VOCABULARY = [
    *SPECIAL,
    *_PUNCTUATION,
    *_LOWER,
    *("##" + character for character in _LOWER),
    *_WORDS,
]
CASED_VOCABULARY = [
    *UNCASED_VOCABULARY,
    *string.ascii_uppercase,
    *("##" + letter for letter in string.ascii_uppercase),
    *_CASED,
]
DIM, LAYERS, POSITIONS = 48, 2, 64


def config(**changes: Any) -> DistilBertConfig:
    """A small DistilBERT with the vocabulary above."""
    settings = {
        "vocab_size": len(UNCASED_VOCABULARY),
        "dim": DIM,
        "n_layers": LAYERS,
        "n_heads": 4,
        "hidden_dim": 2 * DIM,
        "max_position_embeddings": POSITIONS,
    }
    return DistilBertConfig(**settings | changes)


def randomize(model: PreTrainedModel, seed: int = 5) -> PreTrainedModel:
    """Weights large enough, biases and norms too, that any mistake shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.2, generator=generator)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    return model.eval()


def save(model: PreTrainedModel, folder: Path, vocabulary: list[str] = UNCASED_VOCABULARY, **tokenizer: Any) -> str:
    """Write a model and its tokenizer.json."""
    randomize(model).save_pretrained(folder)
    save_tokenizer(folder, vocabulary, **tokenizer)
    return str(folder)


def save_tokenizer(folder: Path, vocabulary: list[str] = UNCASED_VOCABULARY, **settings: Any) -> None:
    """tokenizer.json and tokenizer_config.json as transformers writes them."""
    # DistilBertTokenizerFast(vocab_file=...) would ignore its file and know five tokens.
    tokenizer = BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, **settings)
    assert len(tokenizer) == len(vocabulary)
    tokenizer.save_pretrained(folder)


def save_vocabulary(folder: Path, vocabulary: list[str], **settings: Any) -> None:
    """vocab.txt and, if there are settings, tokenizer_config.json, as the first published checkpoints have them."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer_config.json").unlink(missing_ok=True)
    (folder / "vocab.txt").write_text("".join(token + "\n" for token in vocabulary), encoding="utf-8")
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def hugging_face_tokenizer(folder: str | Path) -> Any:
    """The oracle; raises where transformers would silently know another vocabulary than the folder's."""
    folder = Path(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if (folder / "tokenizer.json").exists():
        size = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
    else:
        size = len((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
    assert tokenizer.vocab_size == size
    return tokenizer


def hugging_face_ids(tokenizer: Any, texts: list[str], max_length: int) -> list[list[int]]:
    """Token ids of the oracle."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=max_length, split_special_tokens=True)[
        "input_ids"
    ]
    return ids


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def edit_tensors(path: Path, **changes: torch.Tensor | None) -> None:
    """Set tensors of a safetensors file, dots in names written as ``__``; None removes one."""
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, path, metadata={"format": "pt"})


class Checkpoints:
    """Folders of one test session, each made when it is first asked for; tests that change one copy it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def bare(self) -> str:
        """An encoder alone."""
        return save(DistilBertModel(config()), self._root / "bare")

    @cached_property
    def relu(self) -> str:
        return save(DistilBertModel(config(activation="relu")), self._root / "relu")

    @cached_property
    def masked_lm(self) -> str:
        """A masked language model, its encoder's tensors under ``distilbert.``."""
        return save(DistilBertForMaskedLM(config()), self._root / "masked_lm")

    @cached_property
    def classifier(self) -> str:
        """Two named classes."""
        names = {0: "NEGATIVE", 1: "POSITIVE"}
        return self._classifier("classifier", id2label=names, label2id={name: index for index, name in names.items()})

    @cached_property
    def three_classes(self) -> str:
        return self._classifier("three_classes", num_labels=3)

    @cached_property
    def multi_label(self) -> str:
        """Three classes that do not exclude each other."""
        return self._classifier("multi_label", num_labels=3, problem_type="multi_label_classification")

    @cached_property
    def half(self) -> str:
        """Weights stored as float16."""
        folder = self._root / "half"
        save_tokenizer(folder)
        randomize(DistilBertModel(config())).half().save_pretrained(folder)
        return str(folder)

    @cached_property
    def cased(self) -> str:
        """A cased vocabulary in vocab.txt, without tokenizer.json."""
        folder = self._root / "cased"
        save(DistilBertModel(config(vocab_size=len(CASED_VOCABULARY))), folder)
        save_vocabulary(folder, CASED_VOCABULARY, do_lower_case=False)
        return str(folder)

    @cached_property
    def uncased_vocabulary(self) -> str:
        """An uncased vocabulary in vocab.txt, nothing else about the tokenizer."""
        folder = self._root / "uncased_vocabulary"
        save(DistilBertModel(config()), folder)
        save_vocabulary(folder, UNCASED_VOCABULARY)
        return str(folder)

    @cached_property
    def sentence(self) -> str:
        """A sentence-transformers folder: mean pooling, unit length, at most 32 tokens."""
        return self.sentence_folder("sentence", "mean", normalize=True, max_length=32)

    def sentence_folder(self, name: str, pooling: str, *, normalize: bool, max_length: int | None = None) -> str:
        """A folder written by sentence-transformers itself."""
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        transformer = Transformer(self.bare, max_seq_length=max_length)
        modules = [transformer, Pooling(DIM, pooling_mode=pooling)]
        if normalize:
            modules.append(Normalize())
        folder = self._root / name
        SentenceTransformer(modules=modules, device="cpu").save(str(folder))
        return str(folder)

    def _classifier(self, name: str, **settings: Any) -> str:
        return save(DistilBertForSequenceClassification(config(**settings)), self._root / name)
