"""The commands, end to end, with the model of the examples and next to no rows."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from benchmarks import compare, peers
from benchmarks.__main__ import _parser, main
from benchmarks.checkpoint import TINY
from benchmarks.report import read_json
from benchmarks.scaling import SHARES, repeated
from distilbeam.transforms import Encoder

FEW = ["--model", str(TINY), "--repeats", "2"]


@pytest.mark.slow
def test_roofline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "r.json"
    assert main(["roofline", *FEW, "--rows", "12", "--corpus", "generated", "--json", str(path)]) == 0
    report = read_json(path)
    assert report.text() == capsys.readouterr().out.strip()
    rows = {row.name: row for row in report.rows}
    dtype = Encoder.load(str(TINY)).engine.compute.dtype
    ceiling = rows[dtype].samples["TFLOP/s"]
    for path_name in ("forward only", "text -> vectors", "stored text -> stored features"):
        found = rows[f"{path_name}, {dtype}"].samples
        assert len(found["fraction"]) == 2
        # The share of the ceiling of the same round, and FLOPs of real tokens only.
        assert found["fraction"] == pytest.approx([a / b for a, b in zip(found["TFLOP/s"], ceiling, strict=True)])
        assert found["tokens/s"][0] / found["TFLOP/s"][0] == pytest.approx(found["tokens/s"][1] / found["TFLOP/s"][1])
    assert {"float32", "bfloat16", "int8"} <= set(rows)


@pytest.mark.slow
def test_scaling_measures_each_job_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    axes = ["--axes", "lengths", "--lengths", "7", "40", "--at", "20"]
    assert main(["scaling", "--model", str(TINY), "--repeats", "1", *axes, "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    # With [CLS] and [SEP].
    assert [row["facts"]["tokens"] for row in rows] == [20 * 9, 20 * 42]
    for row in rows:
        assert row["facts"]["rows"] == 20
        assert row["medians"]["peak MiB"] >= row["medians"]["start MiB"] > 10
        assert row["medians"]["tokens/s"] > 0


@pytest.mark.parametrize("share", SHARES)
def test_repeated_texts_have_their_share(share: float) -> None:
    import numpy as np

    texts = repeated(200, share, np.random.default_rng(2))
    assert len(texts) == 200
    # Texts of one or two words may be equal by chance.
    assert len(set(texts)) == pytest.approx(200 * (1 - share), abs=2)


@pytest.mark.slow
def test_peers_that_are_right_are_timed_and_others_said_to_be_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stub(setup: peers.Setup) -> peers.Embedder:
        encoder = Encoder.load(str(setup.model), dtype="float32")
        if setup.dtype == "int8":
            return lambda texts: encoder.embed(texts[::-1])
        return lambda texts: encoder.embed(texts)

    monkeypatch.setattr(peers, "stub", stub, raising=False)
    found = (
        peers.Peer("right", "stub:stub", "float32", ()),
        peers.Peer("reversed", "stub:stub", "int8", ()),
        peers.Peer("absent", "stub:stub", "float32", ("no_such_module.at_all",)),
        peers.Peer("broken", "no_such_file:stub", "float32", ()),
        peers.Peer("for cuda", "stub:stub", "float32", (), devices=("cuda",)),
    )
    monkeypatch.setattr(compare, "PEERS", found)
    monkeypatch.setattr(peers, "import_module", lambda name, package: peers if "stub" in name else 1 / 0)
    path = tmp_path / "p.json"
    assert main(["peers", *FEW, "--rows", "6", "--corpus", "generated", "--json", str(path)]) == 0
    rows = {row.name: row for row in read_json(path).rows}
    assert len(rows["right"].samples["tokens/s"]) == 2
    assert rows["right"].facts["cosine"] == pytest.approx(1)
    assert not rows["reversed"].samples
    assert "wrong vectors" in rows["reversed"].note
    assert "not installed: no_such_module.at_all" in rows["absent"].note
    assert "does not run here: ZeroDivisionError" in rows["broken"].note
    assert "for cuda" not in rows
    assert "wrong vectors" in capsys.readouterr().out


@pytest.mark.slow
def test_beam_and_hugging_face_agree_with_us(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    only = ["--only", "Hugging", "Beam", "sentence-transformers fp32", "sentence-transformers bf16"]
    assert main(["peers", *FEW, "--rows", "20", "--corpus", "generated", *only, "--json", str(path)]) == 0
    rows = [row for row in read_json(path).rows if row.group == compare.TITLE]
    assert len(rows) == 8
    assert not [row.note for row in rows if row.note]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpu"]) == 2
    said = capsys.readouterr()
    assert not said.out
    assert "CUDA" in said.err
    assert said.err.count("\n") == 1


@pytest.mark.gpu
def test_gpu(tmp_path: Path) -> None:
    path = tmp_path / "g.json"
    assert main(["gpu", *FEW, "--rows", "200", "--corpus", "generated", "--json", str(path)]) == 0
    rows = {row.name: row for row in read_json(path).rows}
    assert rows["forward only, bfloat16"].samples["fraction"]
    assert rows["sentence-transformers fp32"].samples


def test_the_commands_of_the_docs_are_understood() -> None:
    text = (Path(__file__).parents[2] / "docs/benchmarks.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m benchmarks (.+)$", text, flags=re.MULTILINE)
    assert {command.split()[0] for command in commands} == {"roofline", "peers", "scaling", "gpu"}
    for command in commands:
        _parser().parse_args(shlex.split(command, comments=True))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["scaling", "--dtype", "foo"], "`dtype` is 'foo'"),
        (["roofline", "--dtype", "float32", "float16"], "float16"),
        (["roofline", "--plot", "x.foo"], "'x.foo'; its ending must be one of"),
        (["peers", "--only", "nothing"], "'nothing' is the beginning of no peer"),
    ],
)
def test_wrong_settings_are_one_sentence_before_anything_runs(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, *FEW]) == 2
    found = capsys.readouterr()
    assert not found.out
    assert said in found.err
    assert found.err.count("\n") == 1


def test_a_model_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["roofline", "--model", "no/such/folder"]) == 2
    assert "no/such/folder" in capsys.readouterr().err


def test_a_plot_without_matplotlib_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.__main__.find_spec", lambda name: None)
    assert main(["roofline", "--plot", "x.png"]) == 2
    assert "pip install matplotlib" in capsys.readouterr().err
