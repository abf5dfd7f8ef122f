"""Checkpoints made to do harm are refused before they can, in one sentence, and in bounded time and memory."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
import torch
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from distilbeam.pipelines.cli import main
from distilbeam.transforms.distilbert.checkpoint import Checkpoint
from distilbeam.transforms.distilbert.header import WeightsFile
from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer
from distilbeam.transforms.distilbert.weights import Arithmetic, Weights
from distilbeam.transforms.encoder import Encoder
from distilbeam.transforms.errors import CheckpointError, SettingsError
from distilbeam.transforms.inference import Embed
from tests.checkpoints import (
    DIM,
    UNCASED_VOCABULARY,
    Checkpoints,
    edit_json,
    edit_tensors,
    hugging_face_tokenizer,
    save_vocabulary,
)
from tests.faults.loading import BYTES, SECONDS, load
from tests.faults.table import FaultReport

Damage = Callable[[Path], object]
WORDS = "embeddings.word_embeddings.weight"
Q_LIN = "transformer.layer.1.attention.q_lin.weight"
SIZE = len(UNCASED_VOCABULARY)


class Canary:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mknod, (str(self._marker),)


def test_the_canary_sings(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Canary(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def only_pickle(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps(Canary(folder.parent / "ran")))

    return damage


def own_code(file: str, **keys: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / "own_code.py").write_text(f"import os\nos.mknod({str(folder.parent / 'ran')!r})\nclass Own: pass\n")
        edit_json(folder / file, **keys)

    return damage


def config(**changes: Any) -> Damage:
    return lambda folder: edit_json(folder / "config.json", **changes)


def raw(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def modules(*pairs: tuple[str, str]) -> Damage:
    content = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (kind, path) in enumerate(pairs)]
    return raw("modules.json", json.dumps(content).encode())


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        entries = json.loads(content[8 : 8 + length])
        change(entries)
        encoded = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return damage


def header_text(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        encoded = change(content[8 : 8 + length])
        path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])

    return damage


def length(value: int) -> Damage:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(struct.pack("<Q", value) + path.read_bytes()[8:])

    return damage


def sparse(name: str, size: int, start: bytes = b"") -> Damage:
    def damage(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return damage


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def tokenizer(change: Callable[[dict[str, Any]], object]) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        change(content)
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return damage


def tensor(name: str, value: torch.Tensor | None) -> Damage:
    return lambda folder: edit_tensors(folder / "model.safetensors", **{name: value})


def vocabulary(*lines: str) -> Damage:
    return lambda folder: save_vocabulary(folder, list(lines))


def many_lines(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_bytes(b"[UNK]\n[CLS]\n[SEP]\n" + b"ab\n" * 5_000_000)


def swapped(values: list[Any], first: str, second: str) -> None:
    values[first], values[second] = values[second], values[first]  # type: ignore[call-overload]


TRANSFORMER = ("sentence_transformers.models.Transformer", "")
POOLING = ("sentence_transformers.models.Pooling", "1_Pooling")
BOMB = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": ""}
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
DEEP = b"[" * 100 + b"]" * 100

# What is done to a good folder, and what is said of it.
HOSTILE: dict[str, tuple[Damage, str]] = {
    "only pytorch_model.bin": (only_pickle("pytorch_model.bin"), "only as pickle, .* convert them"),
    "only model.pt": (only_pickle("model.pt"), "only as pickle, .* convert them"),
    "only weights.ckpt": (only_pickle("weights.ckpt"), "only as pickle, .* convert them"),
    "auto_map in config.json": (
        own_code("config.json", auto_map={"AutoModel": "own_code.Own"}),
        r"code of its own \(auto_map\).* take a plain DistilBERT",
    ),
    "trust_remote_code": (own_code("config.json", trust_remote_code=True), r"code of its own \(trust_remote_code\)"),
    "own architecture": (own_code("config.json", architectures=["Own"]), "architecture of its own, .'Own'.*DistilBert"),
    "architectures is a map": (config(architectures={"a": 1}), "architecture of its own"),
    "auto_map in tokenizer_config": (
        own_code("tokenizer_config.json", auto_map={"AutoTokenizer": ["own_code.Own", None]}),
        r"tokenizer of its own \(auto_map\)",
    ),
    "own tokenizer class": (
        own_code("tokenizer_config.json", tokenizer_class="Own"),
        r"tokenizer of its own \(the class 'Own'\)",
    ),
    "tokenizer class is a list": (own_code("tokenizer_config.json", tokenizer_class=["Own"]), "tokenizer of its own"),
    "foreign module": (modules(("own_code.Transformer", ""), POOLING), "the module 'own_code.Transformer'; .*never"),
    "module outside": (modules(("sentence_transformers.models.Transformer", "../other"), POOLING), "folder outside"),
    "module at the root": (modules(("sentence_transformers.models.Transformer", "/etc"), POOLING), "folder outside"),
    "module name with NUL": (modules(("sentence_transformers.models.Transformer", "a\0b"), POOLING), "folder outside"),
    "module name with a line": (modules(("sentence_transformers.models.Transformer", "a\nb"), POOLING), "outside"),
    "100,000 modules": (modules(*[TRANSFORMER] * 100_000), "list of 100000 modules; at most 16"),
    "modules.json 100,000 deep": (raw("modules.json", b"[" * 100_000), "modules.json is not valid JSON"),
    "config.json 100,000 deep": (raw("config.json", b'{"a":' * 100_000), "config.json is not valid JSON"),
    "config.json of 1 GB": (sparse("config.json", 1 << 30), "config.json has more than 16 MiB"),
    "dim 10^9": (config(dim=10**9), "dim is 1000000000; it must be a whole number from 1 to 65,536"),
    "dim 10^4000": (config(dim=10**4000), "dim is 1000.*; it must be a whole number"),
    "n_layers 10^6": (config(n_layers=10**6), "n_layers is 1000000; it must be a whole number from 1 to 1,000"),
    "n_layers 1,000": (config(n_layers=1000), "lacks the tensor transformer.layer.2"),
    "negative hidden_dim": (config(hidden_dim=-3), "hidden_dim is -3; it must be"),
    "NaN dim": (config(dim=float("nan")), "dim is nan; it must be"),
    "infinite vocab_size": (config(vocab_size=float("inf")), "vocab_size is inf; it must be"),
    "text for n_heads": (config(n_heads="4"), "n_heads is '4'; it must be"),
    "a list for dim": (config(dim=[48]), r"dim is \[48\]; it must be"),
    "n_heads does not divide dim": (config(n_heads=7), "dim 48 is not a multiple of n_heads 7"),
    "no positions": (config(max_position_embeddings=0), "max_position_embeddings is 0; it must be"),
    "two positions": (config(max_position_embeddings=2), "max_position_embeddings is 2; it must be"),
    "activation is a map": (config(activation={"a": 1}), "activation is {'a': 1}; DistilBERT has"),
    "more positions than weights": (
        config(max_position_embeddings=65),
        r"F32\[64, 48\], config.json asks .*\[65, 48\]",
    ),
    "fewer layers than weights": (config(n_layers=1), "has the tensor transformer.layer.1.*does not have"),
    "an adapter in the encoder": (
        tensor("transformer.layer.0.attention.q_lin.lora_A.weight", torch.zeros(2, DIM)),
        "has the tensor transformer.layer.0.attention.q_lin.lora_A.weight, .*adapters merged",
    ),
    "a word fewer": (tensor(WORDS, torch.zeros(SIZE - 1, DIM)), "word_embeddings.weight is F32"),
    "integers for weights": (tensor(Q_LIN, torch.zeros(DIM, DIM).long()), "q_lin.weight is I64"),
    "no tensors": (raw("model.safetensors", struct.pack("<Q", 2) + b"{}"), "lacks the tensor"),
    "header length 0": (length(0), "not a whole safetensors file; copy it again"),
    "header length beyond the file": (length(1 << 30), "not a whole safetensors file"),
    "header length 2^64-1": (length((1 << 64) - 1), "not a whole safetensors file"),
    "header of 5 MB": (header(lambda entries: entries.update(__metadata__={"a": "b" * 5_000_000})), "not a whole"),
    "header 100 deep": (header_text(lambda text: DEEP), "damaged safetensors header; copy it again"),
    "shape 100 deep": (header(lambda e: e[Q_LIN].update(shape=json.loads(DEEP))), "damaged safetensors header"),
    "metadata 100 deep": (header(lambda e: e.update(__metadata__={"a": json.loads(DEEP)})), "damaged safetensors"),
    "overlapping tensors": (header(lambda e: e[Q_LIN].update(data_offsets=[0, 4 * DIM * DIM])), "does not fill"),
    "swapped ranges of other sizes": (header(lambda e: swapped(e, Q_LIN, WORDS)), r"is F32\["),
    "offsets beyond the file": (
        header(lambda e: e[Q_LIN].update(data_offsets=[1 << 40, (1 << 40) + 4 * DIM * DIM])),
        "does not fill the bytes|bytes of tensors where",
    ),
    "offsets backwards": (header(lambda e: e[Q_LIN]["data_offsets"].reverse()), "does not fill the bytes"),
    "offsets as floats": (header(lambda e: e[Q_LIN].update(data_offsets=[0.0, 1.0])), "damaged safetensors header"),
    "shape of 2^63": (header(lambda e: e[Q_LIN].update(shape=[1 << 63, 1])), "damaged safetensors header"),
    "shape of a million": (header(lambda e: e[Q_LIN].update(shape=[1 << 62] * 500_000)), "not a whole|damaged"),
    "shape of true": (header(lambda e: e["embeddings.LayerNorm.bias"].update(shape=[48, True])), "damaged"),
    "shape as text": (header(lambda e: e[Q_LIN].update(shape="48,48")), "damaged safetensors header"),
    "unknown dtype": (header(lambda e: e[Q_LIN].update(dtype="F32x")), "of the unknown type F32x"),
    "dtype is a map": (header(lambda e: e[Q_LIN].update(dtype={})), "damaged safetensors header"),
    "dtype of half the bytes": (header(lambda e: e[Q_LIN].update(dtype="F16")), "does not fill the bytes"),
    "a key twice": (
        header_text(lambda text: text.replace(b"layer.1.attention.q_lin.weight", b"layer.0.attention.q_lin.weight")),
        "damaged safetensors header",
    ),
    "header in UTF-16": (header_text(lambda text: text.decode().encode("utf-16")), "damaged safetensors header"),
    "300,000 empty tensors": (
        header_text(lambda text: b"{" + b'"%d":{},' * 300_000 % tuple(range(300_000)) + b'"x":{}}'),
        "damaged safetensors header",
    ),
    "million lists in the header": (header_text(lambda text: b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"), "damaged"),
    "weights of 1 TB": (sparse("model.safetensors", 1 << 40), "has 1099511627776 bytes; a DistilBERT's weights have"),
    "weights are a pipe": (instead("model.safetensors", os.mkfifo), "is no regular file"),
    "weights are a folder": (instead("model.safetensors", lambda path: path.mkdir()), "is no regular file"),
    "weights are /dev/zero": (instead("model.safetensors", link("/dev/zero")), "is no regular file"),
    "weights are a link to nothing": (instead("model.safetensors", link("gone")), "is a link to nothing"),
    "weights are a circle of links": (instead("model.safetensors", link("model.safetensors")), "cannot open"),
    "config.json is a pipe": (instead("config.json", os.mkfifo), "is no regular file"),
    "config.json is /dev/zero": (instead("config.json", link("/dev/zero")), "is no regular file"),
    "config.json is /etc/passwd": (instead("config.json", link("/etc/passwd")), "config.json is not valid JSON"),
    "tokenizer.json is a pipe": (instead("tokenizer.json", os.mkfifo), "is no regular file"),
    "tokenizer_config.json is a pipe": (instead("tokenizer_config.json", os.mkfifo), "is no regular file"),
    "modules.json is a pipe": (instead("modules.json", os.mkfifo), "is no regular file"),
    "weights are not finite": (
        tensor(Q_LIN, torch.full((DIM, DIM), torch.nan)),
        "values that are not finite; take the",
    ),
    "one weight is infinite": (
        lambda folder: edit_tensors(
            folder / "model.safetensors",
            **{WORDS: torch.cat([torch.zeros(SIZE - 1, DIM), torch.full((1, DIM), -torch.inf)])},
        ),
        "word_embeddings.weight has values that are not finite; take the",
    ),
    "weights beyond float32": (
        tensor(Q_LIN, torch.full((DIM, DIM), 1e300, dtype=torch.float64)),
        "not finite; they do not fit into float32: choose another dtype",
    ),
    "tokenizer.json of 1 GB": (sparse("tokenizer.json", 1 << 30, b"{"), "tokenizer.json has more than 16 MiB"),
    "tokenizer.json 100,000 deep": (raw("tokenizer.json", b"[" * 100_000), "cannot read the tokenizer"),
    "tokenizer.json of 5 million lists": (raw("tokenizer.json", b"[" + b"[]," * 5_500_000 + b"[]]"), "it has no model"),
    "an id beyond the embedding": (
        tokenizer(lambda t: t["model"]["vocab"].update(zzz=SIZE)),
        f"ids up to {SIZE}, the model's vocabulary ends at {SIZE - 1}; take the tokenizer",
    ),
    "an id of 2^40": (tokenizer(lambda t: t["model"]["vocab"].update(zzz=1 << 40)), "ids up to 1099511627776"),
    "a negative id": (tokenizer(lambda t: t["model"]["vocab"].update(zzz=-1)), "no whole number"),
    "an id as text": (tokenizer(lambda t: t["model"]["vocab"].update(zzz="7")), "no whole number"),
    "an added id beyond the embedding": (
        tokenizer(lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": SIZE, "content": "zzz"})),
        f"ids up to {SIZE}",
    ),
    "an added token in tokenizer.json that renumbers": (
        tokenizer(lambda t: t["added_tokens"].append({**t["added_tokens"][0], "id": 7, "content": "zzz"})),
        f"ids up to {SIZE}|cannot read the tokenizer",
    ),
    "a control id beyond the embedding": (
        tokenizer(lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(ids=[SIZE + 5])),
        f"ids up to {SIZE + 5}",
    ),
    "no [UNK]": (tokenizer(lambda t: t["model"]["vocab"].pop("[UNK]")), "no token for unknown words: '.UNK.'"),
    "no [CLS]": (tokenizer(lambda t: t.update(post_processor=None)), "does not put one token before and one after"),
    "no [SEP] in vocab.txt": (
        vocabulary(*(token for token in UNCASED_VOCABULARY if token != "[SEP]")),
        r"lacks the sep_token '\[SEP\]'",
    ),
    "vocab.txt of 5 million lines": (many_lines, "ids up to 5000002"),
    "a normalizer by a regex": (tokenizer(lambda t: t.update(normalizer=BOMB)), "normalizer of type 'Replace'"),
    "a normalizer that grows texts": (
        tokenizer(
            lambda t: t.update(
                normalizer={
                    "type": "Sequence",
                    "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 60,
                }
            )
        ),
        "its normalizer is no list of at most 8",
    ),
    "a normalizer 100 deep": (
        tokenizer(lambda t: t.update(normalizer=nested({"type": "Lowercase"}, 100))),
        "its normalizer is no list",
    ),
    "a pre-tokenizer by a regex": (tokenizer(lambda t: t.update(pre_tokenizer=SPLIT)), "a regular expression of its"),
    "a pre-tokenizer in a sequence by a regex": (
        tokenizer(lambda t: t.update(pre_tokenizer={"type": "Sequence", "pretokenizers": [SPLIT]})),
        "a regular expression of its own",
    ),
    "an unknown pre-tokenizer": (tokenizer(lambda t: t.update(pre_tokenizer={"type": "Own"})), "of type 'Own'"),
    "words of 10^9 characters": (
        tokenizer(lambda t: t["model"].update(max_input_chars_per_word=10**9)),
        "max_input_chars_per_word is 1000000000; it must be 1 to 200",
    ),
    "a tokenizer of no known type": (tokenizer(lambda t: t["model"].update(type="Own")), "is of type 'Own'"),
    "a vocabulary twice": (
        raw("tokenizer.json", b'{"model":{"type":"WordPiece","vocab":{"a":0},"vocab":{"a":9}}}'),
        "cannot read the tokenizer",
    ),
    "[SEP] is a word": (
        tokenizer(lambda t: t.update(pre_tokenizer={"type": "WhitespaceSplit"}, normalizer=None)),
        "in a text for a control token",
    ),
}


LARGE = {"tokenizer.json of 5 million lists", "vocab.txt of 5 million lines", "million lists in the header"}
LABELS = "does not name each of the classifier's"


def nested(part: dict[str, Any], depth: int) -> dict[str, Any]:
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


@pytest.fixture
def folder(checkpoints: Checkpoints, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoints.bare, tmp_path / "model"))


@pytest.mark.parametrize("case", [case for case in HOSTILE if case not in LARGE])
def test_hostile_checkpoints_are_refused(case: str, folder: Path) -> None:
    damage, message = HOSTILE[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        _ = Encoder.load(str(folder), device="cpu", dtype="float32").engine
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1_000
    assert not (folder.parent / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("case", HOSTILE)
def test_refusing_them_takes_bounded_time_and_memory(case: str, folder: Path, fault_report: FaultReport) -> None:
    damage, message = HOSTILE[case]
    damage(folder)
    found = load(str(folder), dtype="float32")
    assert re.search(message, found.message), found
    assert found.error == "CheckpointError"
    assert found.stage in ("open", "weights")  # before any text is looked at
    assert found.seconds < SECONDS
    assert found.bytes < BYTES
    assert not (folder.parent / "ran").exists()
    assert not any("own_code" in name for name in found.modules)
    fault_report.add(
        f"model: {case}",
        injected=1,
        seconds=found.seconds,
        peak_mb=found.bytes / 2**20,
        note=f"refused ({found.stage})",
    )


@pytest.mark.slow
def test_the_folder_they_are_made_from_is_good(folder: Path) -> None:
    found = load(str(folder), dtype="float32")
    assert (found.stage, found.error) == ("done", "")


def test_a_file_cut_at_any_length_is_refused(folder: Path, fault_report: FaultReport) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (header_length,) = struct.unpack("<Q", content[:8])
    offsets = [8 + header_length + entry["data_offsets"][1] for entry in _entries(content).values()]
    lengths = {0, 1, 7, 8, 9, 10, 8 + header_length // 2, *(7 + header_length + n for n in range(3)), len(content) - 1}
    lengths |= {offset + step for offset in offsets for step in (-1, 0, 1)}
    lengths |= set(random.Random(5).sample(range(len(content)), 100))
    lengths -= {length for length in lengths if length >= len(content)}
    for cut in lengths:
        path.write_bytes(content[:cut])
        with pytest.raises(CheckpointError, match=r"model\.safetensors .*copy (it|the file) again"):
            Checkpoint.open(str(folder))
    path.write_bytes(content)
    Checkpoint.open(str(folder))
    fault_report.add("model: cut at any length", injected=len(lengths), note="refused (open)")


def test_whatever_header_we_accept_safetensors_reads_alike(folder: Path, fault_report: FaultReport) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (header_length,) = struct.unpack("<Q", content[:8])
    chance = random.Random(7)
    refused = accepted = 0
    for _ in range(600):
        altered = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            altered[chance.randrange(8 + header_length)] = chance.choice(b'0123456789[]{}",:F \x00\xff')
        path.write_bytes(altered)
        try:
            ours = WeightsFile.of(folder / "model.safetensors").header()
        except CheckpointError:
            refused += 1
            continue
        accepted += 1
        # Metadata may be refused by them alone; what Weights then raises is a CheckpointError too.
        with contextlib.suppress(SafetensorError), safe_open(str(path), framework="pt") as theirs:
            names = theirs.keys()
            assert {name: shape for name, (_, shape) in ours.items()} == {
                name: tuple(theirs.get_slice(name).get_shape()) for name in names
            }
    assert refused > 200
    assert accepted > 20
    fault_report.add("model: altered header", injected=600, note=f"{refused} refused, the others read alike")


def test_every_tensor_is_held_to_its_shape_type_and_presence(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints.classifier, tmp_path / "model"))
    path = folder / "model.safetensors"
    tensors = load_file(path)
    injected = 0
    for name, value in tensors.items():
        wrong = [torch.zeros(*value.shape, 1), torch.zeros(value.shape[0] + 1, *value.shape[1:]), value.to(torch.int32)]
        if value.ndim == 2 and value.shape[0] != value.shape[1]:
            wrong.append(value.T.contiguous())
        for other in [*wrong, None]:
            changed = {key: each for key, each in tensors.items() if key != name}
            if other is not None:
                changed[name] = other
            save_file(changed, path)
            if other is None and name in ("classifier.weight", "pre_classifier.weight"):
                assert Checkpoint.open(str(folder)).labels == ()  # an encoder alone
                continue
            with pytest.raises(CheckpointError) as caught:
                Checkpoint.open(str(folder))
            expected = (
                rf"{re.escape(name)} is [FI]32\[|lacks the tensor {re.escape(name)}|classifier.bias is F32|{LABELS}"
            )
            assert re.search(expected, str(caught.value))
            injected += 1
    assert injected > 4 * len(tensors) - 10


def _entries(content: bytes) -> dict[str, Any]:
    (header_length,) = struct.unpack("<Q", content[:8])
    entries: dict[str, Any] = json.loads(content[8 : 8 + header_length])
    entries.pop("__metadata__", None)
    return entries


def test_links_as_the_hub_has_them_are_followed(checkpoints: Checkpoints, folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "blobs"
    snapshot = tmp_path / "hub" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs", str(number)))
    expected = Encoder.load(checkpoints.bare, device="cpu", dtype="float32").embed(["the cat"])
    assert (Encoder.load(str(snapshot), device="cpu", dtype="float32").embed(["the cat"]) == expected).all()


def test_nothing_of_a_linked_file_is_shown(folder: Path, tmp_path: Path) -> None:
    secret, told = tmp_path / "secret", []
    for content in ("zqsecretzq", '{"model_type": 7, "k": "zqsecretzq"}', '["zqsecretzq"]', "zqsecretzq\n" * 9):
        secret.write_text(content)
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "modules.json", "model.safetensors"):
            target = Path(shutil.copytree(folder, tmp_path / "copy"))
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to(secret)
            try:
                Encoder.load(str(target))
            except CheckpointError as error:
                told.append(str(error))
            shutil.rmtree(target)
    assert len(told) > 15
    assert "zqsecretzq" not in "".join(told)


@pytest.mark.parametrize("how", ["replaced", "written to", "cut"])
def test_weights_that_change_after_the_check_are_not_loaded(folder: Path, how: str) -> None:
    path = folder / "model.safetensors"
    checkpoint = Checkpoint.open(str(folder))
    content = path.read_bytes()
    if how == "replaced":
        shutil.copy(path, folder / "new")
        (folder / "new").replace(path)
    elif how == "written to":
        with path.open("r+b") as file:
            file.seek(len(content) - 4)
            file.write(b"\0\0\0\0")
    else:
        path.write_bytes(content[:-4])
    with pytest.raises(CheckpointError, match=r"has changed since it was checked.*start the job again"):
        Weights(checkpoint, torch.device("cpu"), Arithmetic(torch.float32, torch.float32))
    with pytest.raises(CheckpointError, match="has changed since it was checked"):
        _ = checkpoint.weights_sha256


def test_weights_that_change_while_they_are_hashed_have_no_digest(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "model.safetensors"
    checkpoint = Checkpoint.open(str(folder))
    content = path.read_bytes()
    real = hashlib.sha256

    def slow(*given: Any) -> Any:
        (folder / "new").write_bytes(content)
        (folder / "new").replace(path)
        return real(*given)

    monkeypatch.setattr("distilbeam.transforms.distilbert.header.hashlib.sha256", slow)
    with pytest.raises(CheckpointError, match="has changed since it was checked"):
        _ = checkpoint.weights_sha256


def test_a_tokenizer_that_changes_after_the_check_is_not_loaded(folder: Path) -> None:
    checkpoint = Checkpoint.open(str(folder))
    WordPieceTokenizer.load(folder, SIZE, checkpoint.tokenizer_sha256)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content + "\n")
    with pytest.raises(CheckpointError, match="has changed since it was checked"):
        WordPieceTokenizer.load(folder, SIZE, checkpoint.tokenizer_sha256)


def test_old_tokenizers_without_a_type_are_read_as_hugging_face_reads_them(folder: Path) -> None:
    tokenizer(lambda t: t["model"].pop("type"))(folder)
    texts = ["The cat sat", "unknownword ☃", "[SEP] [unused1]"]
    theirs = hugging_face_tokenizer(folder)(texts, split_special_tokens=True)["input_ids"]
    ours = WordPieceTokenizer.load(folder, SIZE)
    assert [[ours.cls_id, *row, ours.sep_id] for row in ours.encode(texts)] == theirs


CONTROL = ["[CLS]", "[SEP]", "[MASK]", "[PAD]", "[UNK]", "[unused1]", "[unused99]", "##ing", "[sep]", "[ SEP ]"]


@pytest.mark.parametrize("added", [[], ["<url>"], ["<url>", "[SEP]"], ["[unused1]", "cat sat"]])
def test_control_tokens_in_a_text_are_text(folder: Path, added: list[str]) -> None:
    stored = Tokenizer.from_file(str(folder / "tokenizer.json"))
    # As the model has no rows for new words, they take the places of known ones.
    state = json.loads(stored.to_str())
    for number, content in enumerate(added):
        if content not in UNCASED_VOCABULARY:
            place = UNCASED_VOCABULARY[40 + number]
            state["model"]["vocab"][content] = state["model"]["vocab"].pop(place)
    stored = Tokenizer.from_str(json.dumps(state))
    stored.add_tokens([AddedToken(content, special=False) for content in added if content != "[SEP]"])
    stored.save(str(folder / "tokenizer.json"))
    theirs = hugging_face_tokenizer(folder)
    ours = WordPieceTokenizer.load(folder, SIZE)
    texts = [f"the {a} cat{b} sat <url> on {b}{a}" for a in CONTROL for b in CONTROL] + CONTROL
    expected = theirs(texts, split_special_tokens=True)["input_ids"]
    found = [[ours.cls_id, *row, ours.sep_id] for row in ours.encode(texts)]
    assert found == expected
    assert not any({ours.cls_id, ours.sep_id} & set(row[1:-1]) for row in found)


def test_a_control_token_that_is_said_to_be_a_word_is_none(folder: Path) -> None:
    tokenizer(lambda t: [token.update(special=False) for token in t["added_tokens"]])(folder)
    ours = WordPieceTokenizer.load(folder, SIZE)
    for row in ours.encode([f"a {token} b" for token in CONTROL]):
        assert not {ours.cls_id, ours.sep_id} & set(row)


def test_a_pin_holds_the_weights_that_are_used(folder: Path) -> None:
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert Encoder.load(str(folder), model_sha256=right).checkpoint.weights_sha256 == right
    Encoder.load(str(folder), model_sha256=right.upper())
    edit_tensors(folder / "model.safetensors", **{Q_LIN: torch.zeros(DIM, DIM)})
    other = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert Checkpoint.open(str(folder)).weights_sha256 == other
    with pytest.raises(
        CheckpointError, match=f"has the SHA-256 {other}, but `model_sha256` pins {right}; take the model"
    ):
        Encoder.load(str(folder), model_sha256=right)


@pytest.mark.parametrize("value", ["", "abc", "g" * 64, "0" * 63, "sha256:" + "0" * 64])
def test_what_is_no_digest_is_refused_at_once(value: str) -> None:
    with pytest.raises(SettingsError, match="`model_sha256` must be 64 hexadecimal digits, as sha256sum"):
        Embed("nowhere/at/all@main", model_sha256=value)


def test_a_folder_that_is_here_is_held_to_its_pin_while_the_pipeline_is_built(folder: Path) -> None:
    pipeline = beam.Pipeline(runner=FnApiRunner())
    texts = pipeline | beam.Create([beam.Row(text="the cat")])
    with pytest.raises(CheckpointError, match="but `model_sha256` pins 000"):
        _ = texts | Embed(folder, model_sha256="0" * 64)


def test_workers_hold_a_model_to_its_pin_before_they_compute_a_row(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILBEAM_CACHE", str(tmp_path / "cache"))
    computed = []
    monkeypatch.setattr(Encoder, "featurize", lambda *given: computed.append(given))
    # A URL, so that nothing is looked at where the pipeline is built.
    pipeline = beam.Pipeline(runner=FnApiRunner())
    texts = pipeline | beam.Create([beam.Row(text="the cat")])
    _ = texts | Embed(f"file://{folder}", model_sha256="0" * 64)
    with pytest.raises(Exception, match="but `model_sha256` pins 000"):
        pipeline.run()
    assert not computed


def test_the_command_line_pins(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "the cat"}\n')
    right = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    command = [
        "embed",
        "--model",
        str(folder),
        "--input",
        str(tmp_path / "in.jsonl"),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*command, "--model-sha256", "0" * 64]) == 2
    assert f"has the SHA-256 {right}, but --model-sha256 pins {'0' * 64}" in capsys.readouterr().err
    assert main([*command, "--model-sha256", right[:-1]]) == 2
    assert "--model-sha256 must be 64 hexadecimal digits" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--model-sha256", right]) == 0
    capsys.readouterr()
    assert main(["inspect", "--json", str(tmp_path / "out")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert right in json.dumps(shown["models"])
