"""What a folder must hold, and one clear sentence for everything else."""

import hashlib
import json
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distilbeam.transforms.distilbert.checkpoint import Checkpoint, ModelConfig
from distilbeam.transforms.distilbert.header import WeightsFile
from distilbeam.transforms.errors import CheckpointError
from tests.checkpoints import DIM, LAYERS, POSITIONS, UNCASED_VOCABULARY, Checkpoints, edit_json, edit_tensors

Q_LIN = "transformer.layer.1.attention.q_lin.weight"


@pytest.mark.parametrize(
    ("name", "prefix", "labels", "multi_label"),
    [
        ("bare", "", (), False),
        ("half", "", (), False),
        ("cased", "", (), False),
        ("masked_lm", "distilbert.", (), False),
        ("classifier", "distilbert.", ("NEGATIVE", "POSITIVE"), False),
        ("three_classes", "distilbert.", ("LABEL_0", "LABEL_1", "LABEL_2"), False),
        ("multi_label", "distilbert.", ("LABEL_0", "LABEL_1", "LABEL_2"), True),
    ],
)
def test_what_hugging_face_saved_is_understood(
    checkpoints: Checkpoints, name: str, prefix: str, labels: tuple[str, ...], multi_label: bool
) -> None:
    folder = getattr(checkpoints, name)
    found = Checkpoint.open(folder)
    assert (found.prefix, found.labels, found.multi_label) == (prefix, labels, multi_label)
    assert (found.folder, found.name, found.id, found.revision) == (Path(folder), folder, folder, None)
    assert (found.config.dim, found.config.n_layers, found.config.n_heads) == (DIM, LAYERS, 4)
    assert (found.config.hidden_dim, found.config.activation) == (2 * DIM, "gelu")
    assert found.max_length == POSITIONS


def test_hashes_are_those_of_the_files(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.cased, tmp_path / "model")
    found = Checkpoint.open(str(folder))
    assert found.weights_sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    content = (folder / "vocab.txt").read_bytes() + (folder / "tokenizer_config.json").read_bytes()
    assert found.tokenizer_sha256 == hashlib.sha256(content).hexdigest()
    edit_json(folder / "tokenizer_config.json", do_lower_case=True)
    assert Checkpoint.open(str(folder)).tokenizer_sha256 != found.tokenizer_sha256


def test_defaults_are_those_of_distilbert_base(tmp_path: Path) -> None:
    assert ModelConfig.parse({"model_type": "distilbert"}, tmp_path) == ModelConfig(
        30_522, 512, 768, 6, 12, 3_072, "gelu"
    )


@pytest.mark.parametrize(
    ("limit", "expected"),
    [(16, 16), (10_000, POSITIONS), (1e30, POSITIONS), (None, POSITIONS), ("12", POSITIONS), (0, POSITIONS)],
)
def test_max_length_is_the_tokenizers_within_the_models(
    checkpoints: Checkpoints, tmp_path: Path, limit: object, expected: int
) -> None:
    folder = shutil.copytree(checkpoints.bare, tmp_path / "model")
    edit_json(folder / "tokenizer_config.json", model_max_length=limit)
    assert Checkpoint.open(str(folder)).max_length == expected


def test_labels_follow_their_index_not_their_order_in_the_file(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.three_classes, tmp_path / "model")
    edit_json(folder / "config.json", id2label={"2": "C", "0": "A", "1": "B"})
    assert Checkpoint.open(str(folder)).labels == ("A", "B", "C")
    edit_json(folder / "config.json", id2label=None, label2id=None)
    assert Checkpoint.open(str(folder)).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def _header(folder: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Rewrite the header of model.safetensors."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    change(header)
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + length :])


def _only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")


def _cut(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def _file(name: str, content: bytes | None) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "only pickle": (_only_pickle, "holds its weights only as pickle"),
    "no weights": (_file("model.safetensors", None), r"has no model\.safetensors"),
    "no config": (_file("config.json", None), r"has no config\.json; give the folder of a DistilBERT checkpoint"),
    "config is no JSON": (_file("config.json", b"{"), r"config\.json is not valid JSON"),
    "config is not UTF-8": (_file("config.json", b'{"a": "\xff"}'), r"config\.json is not valid JSON"),
    "config is deep": (_file("config.json", b"[" * 100_000), r"config\.json is not valid JSON"),
    "config is a list": (_file("config.json", b"[]"), r"config\.json is not a JSON object"),
    "tokenizer_config is no JSON": (_file("tokenizer_config.json", b"{"), r"tokenizer_config\.json is not valid JSON"),
    "BERT": (_config(model_type="bert"), r"a model of type 'bert'; distilbeam runs 'distilbert' models"),
    "no model_type": (_config(model_type=None), "a model of type None"),
    "its own code": (_config(auto_map={"AutoModel": "modeling.Model"}), "asks for code of its own"),
    "dim is text": (_config(dim="48"), "dim is '48'; it must be a whole number from 1 to 65,536"),
    "negative layers": (_config(n_layers=-1), "n_layers is -1; it must be a whole number from 1 to 1,000"),
    "true heads": (_config(n_heads=True), "n_heads is True; it must be a whole number from 1"),
    "heads": (_config(n_heads=5), "dim 48 is not a multiple of n_heads 5"),
    "activation": (_config(activation="silu"), "activation is 'silu'; DistilBERT has 'gelu' or 'relu'"),
    "more layers": (_config(n_layers=3), r"lacks the tensor transformer\.layer\.2\.attention\.q_lin\.weight"),
    "wider": (_config(hidden_dim=99), r"lin1\.weight is F32\[96, 48\], config\.json asks for .* \[99, 48\]"),
    "missing tensor": (
        lambda folder: edit_tensors(folder / "model.safetensors", **{Q_LIN: None}),
        "lacks the tensor transformer.layer.1.attention.q_lin.weight",
    ),
    "wrong shape": (
        lambda folder: edit_tensors(folder / "model.safetensors", **{Q_LIN: torch.zeros(DIM, DIM + 1)}),
        r"q_lin\.weight is F32\[48, 49\], config\.json asks for floats of shape \[48, 48\]",
    ),
    "integers": (
        lambda folder: edit_tensors(folder / "model.safetensors", **{Q_LIN: torch.zeros(DIM, DIM).int()}),
        r"q_lin\.weight is I32\[48, 48\], config\.json asks for floats",
    ),
    "empty weights": (lambda folder: _cut(folder, 0), "is not a whole safetensors file"),
    "seven bytes": (lambda folder: _cut(folder, 7), "is not a whole safetensors file"),
    "half a header": (lambda folder: _cut(folder, 300), "is not a whole safetensors file"),
    "half the weights": (lambda folder: _cut(folder, 60_000), "bytes of tensors where its header promises"),
    "one byte more": (
        lambda folder: (folder / "model.safetensors").open("ab").write(b"\0"),
        "bytes of tensors where its header promises",
    ),
    "weights are text": (_file("model.safetensors", b"version https://git-lfs"), "is not a whole safetensors file"),
    "header is no JSON": (
        _file("model.safetensors", struct.pack("<Q", 9) + b'{"a": nope' * 9),
        "has a damaged safetensors header",
    ),
    "header is a list": (_file("model.safetensors", struct.pack("<Q", 2) + b"[]"), "has a damaged safetensors header"),
    "header is deep": (
        _file("model.safetensors", struct.pack("<Q", 100_000) + b"[" * 100_000),
        "has a damaged safetensors header",
    ),
    "header lies about a shape": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(shape=[DIM, DIM + 1])),
        f"tensor {Q_LIN} does not fill the bytes",
    ),
    "header lies about a type": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(dtype="F4")),
        f"tensor {Q_LIN} is of the unknown type F4",
    ),
    "header has text for a shape": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(shape="ab")),
        "has a damaged safetensors header",
    ),
    "header has text for offsets": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(data_offsets="ab")),
        "has a damaged safetensors header",
    ),
    "header has a negative shape": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(shape=[-DIM, -DIM])),
        "has a damaged safetensors header",
    ),
    "tensors overlap": (
        lambda folder: _header(folder, lambda header: header[Q_LIN].update(data_offsets=[0, 4 * DIM * DIM])),
        "does not fill the bytes",
    ),
    "no tokenizer": (_file("tokenizer.json", None), r"neither tokenizer\.json nor vocab\.txt"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_is_not_a_distilbert_is_refused(checkpoints: Checkpoints, tmp_path: Path, case: str) -> None:
    damage, message = REFUSALS[case]
    folder = shutil.copytree(checkpoints.bare, tmp_path / "model")
    Checkpoint.open(str(folder))
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        Checkpoint.open(str(folder))
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "A", "1": "B"}, "does not name each of the classifier's 3 classes once.* 2 different names"),
        ({"0": "A", "1": "B", "2": "B"}, "does not name each of the classifier's 3 classes once.* 2 different names"),
        ({"zero": "A"}, "id2label is not a map from class index to name"),
        (["A", "B", "C"], "id2label is not a map from class index to name"),
        (
            {"0": "A", "1": "B", "7": "C"},
            r"does not name each of the classifier's 3 classes once: id2label has \[0, 1, 7\]",
        ),
    ],
)
def test_labels_must_fit_the_classifier(checkpoints: Checkpoints, tmp_path: Path, labels: object, message: str) -> None:
    folder = shutil.copytree(checkpoints.three_classes, tmp_path / "model")
    edit_json(folder / "config.json", id2label=labels)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(str(folder))


def test_half_a_head_is_refused(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoints.three_classes, tmp_path / "model")
    edit_tensors(folder / "model.safetensors", **{"classifier.bias": None})
    with pytest.raises(CheckpointError, match=r"lacks the tensor classifier\.bias"):
        Checkpoint.open(str(folder))


def test_a_file_and_nothing_are_no_folder(checkpoints: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file; give the folder"):
        Checkpoint.open(str(Path(checkpoints.bare, "model.safetensors")))
    with pytest.raises(CheckpointError, match="there is no model folder"):
        Checkpoint.open(str(tmp_path / "nowhere"))


def test_headers_are_read_as_safetensors_reads_them(checkpoints: Checkpoints) -> None:
    from safetensors import safe_open

    path = Path(checkpoints.classifier, "model.safetensors")
    with safe_open(str(path), framework="pt") as file:
        expected = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    assert {name: shape for name, (_, shape) in WeightsFile.of(path).header().items()} == expected


def test_a_folder_is_verified_without_torch(checkpoints: Checkpoints) -> None:
    code = (
        "import sys\n"
        "from distilbeam.transforms.distilbert.checkpoint import Checkpoint\n"
        "from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer\n"
        "found = Checkpoint.open(sys.argv[1])\n"
        "WordPieceTokenizer.load(found.folder, found.config.vocab_size)\n"
        "print(found.config.vocab_size, sorted({'torch', 'transformers'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, checkpoints.bare], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{len(UNCASED_VOCABULARY)} []"


def test_a_checkpoint_can_be_sent(checkpoints: Checkpoints) -> None:
    found = Checkpoint.open(checkpoints.classifier)
    assert pickle.loads(pickle.dumps(found)) == found
