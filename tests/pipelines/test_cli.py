"""The commands, run in this process and, where a signal or a terminal matters, in one of their own."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from distilbeam import pipelines
from distilbeam.pipelines import job as runs
from distilbeam.pipelines.cli import main
from distilbeam.transforms.errors import OutputExistsError

SCRIPT = str(Path(sys.executable).with_name("distilbeam"))


def visible(folder: Path) -> list[Path]:
    return sorted(folder.glob("features/*.parquet")) + sorted(folder.glob("features/*.jsonl"))


def job(command: str, model: str, corpus: str, output: Path, *more: str) -> list[str]:
    return [command, "--model", model, "--input", corpus, "--text", "review", "--output", str(output), *more]


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on standard error, without the progress before it."""
    out, err = capsys.readouterr()
    assert out == ""
    assert "PRIVATE" not in err
    (line,) = [line for line in err.splitlines() if not re.match(r"\d\d:\d\d:\d\d \w+: ", line)]
    assert line.startswith("distilbeam: error: ")
    assert "`" not in line
    assert not re.search(r"\b(if_exists|if_changed|max_\w+|split_bytes|bad_files|model_sha256|\w+_timeout)\b", line)
    assert not re.search(r"\b(?:types|keep|format|dtype)=", line)
    return line


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--input", "nowhere/*.parquet"], 2, "nowhere"),
        (["--model", "./nowhere"], 2, "no model folder './nowhere'"),
        (["--model", "{bert}"], 2, "'bert'"),
        (["--text", "body"], 2, "'body'"),
        (["--keep", "body"], 2, "'body'"),
        (["--id", "body"], 2, "'body'"),
        (["--output", "{taken}"], 2, "holds 1 file that is not part of an output"),
        (["--max-rejects", "lots"], 2, "'lots'"),
        (["--types", "stars"], 2, "NAME=TYPE"),
        (["--types", "stars=float99"], 2, "float99"),
        (["--types", "place=struct<city string>"], 2, "a name, a colon and a type"),
        (["--device", "tpu"], 2, "'tpu'"),
        (["--device", "cuda:77"], 2, "cuda:77"),
        (["--dtype", "float16", "--device", "cpu"], 2, "float16"),
        (["--dimensions", "99"], 2, "99"),
        (["--max-length", "65"], 2, "65"),
        (["--runner", "MoonRunner"], 2, "MoonRunner"),
        (["--runner=DataflowRunner"], 2, "project"),
        (["--input", "https://example.invalid/a.csv"], 2, "https"),
        (["--max-rejects", "1"], 1, "2 of the first 302"),
        (["--max-rejects", "0.5%"], 1, "more than the 0.5% that --max-rejects"),
    ],
)
def test_wrong_input_is_one_sentence_with_an_exit_code(
    more: list[str],
    code: int,
    message: str,
    model: str,
    corpus: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bert = tmp_path / "bert"
    shutil.copytree(model, bert)
    (bert / "config.json").write_text('{"model_type": "bert"}')
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "other.parquet").write_bytes(b"PAR1")
    given = {"--" + name: [value] for name, value in (("model", model), ("input", corpus), ("text", "review"))}
    given["--output"] = [str(tmp_path / "out")]
    for flag, value in zip(more[::2], more[1::2], strict=False):
        given[flag] = [value.format(bert=bert, taken=taken)]
    rest = [more[0]] if len(more) == 1 else []
    assert main(["embed", *(word for flag, values in given.items() for word in (flag, *values)), *rest]) == code
    assert message in sentence(capsys)
    assert visible(tmp_path / "out") == []
    assert (taken / "other.parquet").read_bytes() == b"PAR1"


def test_a_column_of_the_input_is_not_overwritten_unasked(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a b", "label": "mine"}\n')
    command = ["classify", "--model", model, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "'label'" in sentence(capsys)
    assert main([*command, "--prefix", "my_", "--quiet"]) == 0
    table = pd.read_parquet(tmp_path / "out")
    assert list(table.label) == ["mine"]
    assert list(table.my_token_count) == [4]


def test_the_summary_is_what_a_recount_of_the_output_gives(
    model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    features = ["--features", "embedding", "label", "score", "scores", "input_ids"]
    # Where bfloat16 is computed in, micro-batches are filled up, which counts as padding.
    assert main(job("featurize", model, corpus, out, *features, "--id", "id", "--dtype", "float32")) == 0
    told, _ = capsys.readouterr()
    table = pd.read_parquet(out)
    lines = told.splitlines()
    tokens, cut = int(table.token_count.sum()), int(table.truncated.sum())
    assert lines[0].startswith(f"{len(table):,} rows, {tokens:,} tokens in ")
    assert lines[1] == f"padding 0.0%, truncated {cut} ({cut / 300:.1%}), rejected 2 (0.7%)"
    assert lines[2].startswith(f"{out}/features: 1 shard, ")
    assert lines[3] == f"rejected rows, with reasons: {out}/_rejects"
    assert len(eval(lines[4].split()[1], {"pandas": pd})) == len(table)
    assert len(table) == 300
    assert cut > 30
    assert (table.input_ids.map(len) == table.token_count).all()
    assert np.stack(table.embedding).shape == (300, 16)
    rejects = pd.read_parquet(out / "_rejects")
    assert sorted(rejects.line) == [41, 201]
    assert rejects.text.isna().all()


def test_functions_do_what_the_commands_do(model: str, corpus: str, tmp_path: Path) -> None:
    command, function = tmp_path / "command", tmp_path / "function"
    more = ["--keep", "id", "stars", "--pooling", "cls", "--normalize", "--dimensions", "8", "--dtype", "float32"]
    assert main(job("embed", model, corpus, command, *more, "--embedding-dtype", "float16", "--quiet")) == 0
    settings = {"pooling": "cls", "normalize": True, "dimensions": 8, "dtype": "float32", "embedding_dtype": "float16"}
    summary = pipelines.embed(
        model, input=corpus, text="review", output=str(function), keep=["id", "stars"], **settings
    )
    assert [path.name for path in visible(command)] == [path.name for path in visible(function)]
    assert [path.read_bytes() for path in visible(command)] == [path.read_bytes() for path in visible(function)]
    table = pd.read_parquet(function)
    assert list(table.columns) == ["id", "stars", "embedding", "token_count", "truncated"]
    assert table.embedding[0].dtype == np.float16
    assert summary is not None
    assert (summary.rows, summary.rejects, summary.read) == (300, 2, 302)
    assert summary.tokens == table.token_count.sum()
    with pytest.raises(OutputExistsError, match="already holds"):
        pipelines.embed(model, input=corpus, text="review", output=str(function))
    with pytest.raises(TypeError, match="poolin"):
        pipelines.embed(model, input=corpus, output="x", poolin="cls")


def test_a_finished_output_is_resumed_with_its_own_settings_only(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "out", tmp_path / "in"
    folder.mkdir()

    def put(name: str) -> None:
        rows = ({"id": f"{name}{row}", "review": "a b", "other": "c"} for row in range(20))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def files() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in visible(out)}

    put("a")
    put("b")
    command = [*job("embed", model, str(folder), out, "--split-bytes", "100"), "--if-exists", "resume"]
    assert main([*command, "--quiet"]) == 0
    manifest = json.loads((out / "_distilbeam" / "manifest.json").read_text())
    assert manifest["models"][0]["settings"]["text"] == ["review"]
    before = files()
    for more, told in (
        (["--text", "other"], "text was"),
        (["--separator", "-"], "separator was"),
        (["--keep", "id"], "other settings of the input (--text, --keep, --nulls"),
        (["--nulls", "keep"], "other settings of the input"),
        (["--types", "other=large_string"], "other settings of the input"),
        (["--compression", "snappy"], "--compression was 'zstd', is 'snappy'"),
        (["--max-shard-bytes", "12345"], "--max-shard-bytes was"),
    ):
        assert main([*command, *more, "--progress", "none"]) == 2
        assert told in sentence(capsys)
        assert files() == before
    assert main([*command, "--quiet"]) == 0
    assert files() == before
    # Other files are another matter: what is as it was is kept.
    put("c")
    (folder / "a.jsonl").unlink()
    assert main([*command, "--quiet"]) == 0
    kept = before.items() & files().items()
    assert 0 < len(kept) < len(before)
    assert sorted(pd.read_parquet(out).id) == sorted(f"{name}{row}" for name in "bc" for row in range(20))


def test_functions_take_every_bound(model: str, corpus: str, tmp_path: Path) -> None:
    summary = pipelines.tokenize(
        model,
        input=corpus,
        text="review",
        output=str(tmp_path / "out"),
        max_line_bytes=80,
        batch_bytes=2000,
        max_rejects=None,
        compression="snappy",
        max_shard_bytes=9000,
    )
    assert summary is not None
    rejects = pd.read_parquet(tmp_path / "out" / "_rejects")
    long = sum(len(line) > 80 for line in Path(corpus).read_bytes().splitlines())
    assert (rejects.error == "LineTooLong").sum() == long > 30
    assert (summary.rows, summary.rejects) == (302 - len(rejects), len(rejects))
    assert len(visible(tmp_path / "out")) == summary.shards > 1
    assert all(path.stat().st_size <= 2 * 9000 for path in visible(tmp_path / "out"))  # footers come on top
    metadata = pq.read_metadata(visible(tmp_path / "out")[0])
    assert metadata.row_group(0).column(0).compression == "SNAPPY"


@pytest.mark.slow
def test_what_runs_in_other_processes_is_not_watched_in_this_one(
    model: str, corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What this process has counted is not what the workers have done."""

    def untouchable(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(runs, "_watched", untouchable)
    monkeypatch.setattr(runs, "is_in_process", lambda _: False)
    settings = {"input": corpus, "text": "review", "output": str(tmp_path / "out")}
    summary = pipelines.tokenize(model, **settings)
    assert summary is not None
    assert (summary.rows, summary.padding, summary.resumed) == (300, None, 0)
    assert summary.tokens_per_second is not None
    again = pipelines.tokenize(model, **settings, if_exists="resume")
    assert again is not None
    assert (again.tokens, again.tokens_per_second, again.resumed) == (summary.tokens, None, None)


def test_json_lines_hold_the_same(model: str, corpus: str, tmp_path: Path) -> None:
    columnar, lines = tmp_path / "columnar", tmp_path / "lines"
    assert main(job("classify", model, corpus, columnar, "--quiet", "--scores")) == 0
    assert main(job("classify", model, corpus, lines, "--quiet", "--scores", "--output-format", "jsonl")) == 0
    (path,) = visible(lines)
    table = pd.read_parquet(columnar)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["id"] for row in rows] == list(table.id)
    assert [row["label"] for row in rows] == list(table.label)
    assert np.allclose([row["scores"]["YES"] for row in rows], [scores["YES"] for scores in table.scores])


def test_rejects_hold_their_text_only_when_asked(model: str, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(job("tokenize", model, corpus, out, "--quiet", "--rejects-include-text")) == 0
    assert "PRIVATE words that are no JSON" in set(pd.read_parquet(out / "_rejects").text)


def test_an_unforeseen_failure_tells_its_class_and_place_and_no_text(
    model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from distilbeam.transforms.encoder import Encoder

    def fail(*_: object) -> None:
        raise LookupError("PRIVATE text that a library quotes")

    monkeypatch.setattr(Encoder, "outputs", fail)
    command = job("embed", model, corpus, tmp_path / "out", "--progress", "none")
    assert main(command) == 1
    assert re.fullmatch(
        r"distilbeam: error: LookupError at featurization\.py:\d+; "
        "its message is kept back, since it may quote a document",
        sentence(capsys),
    )
    assert main([*command, "--log-level", "debug"]) == 1
    err = capsys.readouterr().err
    assert "PRIVATE" not in err
    assert f"  {__file__}:{fail.__code__.co_firstlineno + 1}" in err.splitlines()


@pytest.mark.slow
def test_our_error_comes_back_from_a_worker_process(
    model: str, corpus: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=1"]
    command = job("embed", model, corpus, tmp_path / "out", "--text", "body", *workers)
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert "PRIVATE" not in err
    assert re.fullmatch(r"distilbeam: error: .*'body'.*\n", err), "nothing of Beam's log, and no traceback"


def test_options_of_beam_add_nothing_to_what_is_said(model: str, corpus: str, tmp_path: Path) -> None:
    command = job("tokenize", model, corpus, tmp_path / "out", "--progress", "none", "--direct_num_workers=1")
    # In a fresh process, where Beam is not imported yet.
    done = subprocess.run([SCRIPT, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_runners_are_chosen_by_their_option(model: str, corpus: str, tmp_path: Path) -> None:
    assert main(job("tokenize", model, corpus, tmp_path / "a", "--quiet", "--runner", "DirectRunner")) == 0
    assert main(job("tokenize", model, corpus, tmp_path / "b", "--quiet", "--runner=FnApiRunner")) == 0
    assert [path.read_bytes() for path in visible(tmp_path / "a")] == [
        path.read_bytes() for path in visible(tmp_path / "b")
    ]


def test_a_runner_elsewhere_gets_its_options_and_its_failure_is_told(
    model: str, corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from apache_beam.runners.portability.portable_runner import PortableRunner

    class Result:
        state = "DONE"

        def wait_until_finish(self) -> str:
            if self.state == "BROKEN":
                raise RuntimeError("Pipeline failed in state FAILED: PRIVATE text")
            return self.state

    given = []

    def run_pipeline(self: PortableRunner, pipeline: object, options: object) -> Result:
        given.append(options.get_all_options(retain_unknown_options=True))
        return Result()

    monkeypatch.setattr(PortableRunner, "run_pipeline", run_pipeline)
    out = tmp_path / "out"
    elsewhere = ["--runner=PortableRunner", "--job_endpoint", "localhost:1", "--", "--checkpointing_interval=5000"]
    command = job("tokenize", model, corpus, out, *elsewhere)
    assert main(command) == 0
    assert given[0]["job_endpoint"] == "localhost:1"
    assert given[0]["checkpointing_interval"] == "5000"
    told = f"distilbeam: the runner has the job; once it is done, distilbeam inspect {out} shows the output\n"
    assert capsys.readouterr().err == told
    for state, message in (("CANCELLED", "CANCELLED"), ("BROKEN", "RuntimeError")):
        monkeypatch.setattr(Result, "state", state)
        assert main(command) == 1
        assert message in sentence(capsys)
    # No output can be seen from here, and waiting was not wanted: the same is said.
    assert main([*command[:-2], "--no_wait_until_finish"]) == 0


def test_the_console_script_is_quiet_when_asked(model: str, corpus: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = subprocess.run(
        [SCRIPT, *job("tokenize", model, corpus, out, "--quiet")], capture_output=True, text=True, timeout=110
    )
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert len(pd.read_parquet(out)) == 300
    failed = subprocess.run([SCRIPT, "embed", "--modle", "m"], capture_output=True, text=True, timeout=60)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert failed.stderr == "distilbeam: error: there is no option --modle, did you mean --model?\n"


@pytest.fixture(scope="module")
def long_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four files of 4.5 MB, each a split; texts are cut to 64 tokens, with enough to do to stop the job amid it."""
    folder = tmp_path_factory.mktemp("long")
    for number in range(4):
        lines = (json.dumps({"id": number * 2500 + row, "review": f"{row} " + "word " * 360}) for row in range(2500))
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def stop(command: list[str], out: Path, number: int) -> tuple[int, str]:
    """Runs a command until its first split is finished, sends a signal, and gives exit code and standard error."""
    # A job in the background of a script is begun with interrupts ignored, and hands that on.
    hear = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        [SCRIPT, *command, "--progress", "none"], stderr=subprocess.PIPE, text=True, preexec_fn=hear
    )
    deadline = time.monotonic() + 100
    while not list(out.glob("_distilbeam/staging/*.json")):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(number)
    _, err = running.communicate(timeout=60)
    return running.returncode, err


@pytest.mark.slow
def test_a_stopped_job_leaves_nothing_visible_and_goes_on_where_it_was(
    model: str, long_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, clean = tmp_path / "out", tmp_path / "clean"
    # Small micro-batches, so that there is time to stop it.
    more = ["--token-budget", "64", "--dtype", "float32", "--threads", "1"]
    command = job("embed", model, str(long_corpus), out, *more)
    told = f"distilbeam: stopped; finished splits, if any, are kept in {out}; go on with --if-exists resume\n"
    assert stop(command, out, signal.SIGINT) == (130, told)
    assert visible(out) == []
    assert not (out / "_distilbeam" / "manifest.json").exists()

    assert main([*command, "--if-exists", "resume", "--progress", "none"]) == 0
    resumed = re.search(r"(\d) of 4 splits were finished before", capsys.readouterr().out)
    assert resumed
    assert 1 <= int(resumed[1]) < 4
    assert main([*job("embed", model, str(long_corpus), clean, *more), "--quiet"]) == 0
    assert [path.name for path in visible(out)] == [path.name for path in visible(clean)]
    assert [path.read_bytes() for path in visible(out)] == [path.read_bytes() for path in visible(clean)]


@pytest.mark.slow
def test_a_terminated_job_leaves_nothing_visible(model: str, long_corpus: Path, tmp_path: Path) -> None:
    command = job("embed", model, str(long_corpus), tmp_path / "out", "--token-budget", "64")
    code, told = stop(command, tmp_path / "out", signal.SIGTERM)
    assert code == 143
    assert told.startswith("distilbeam: stopped; ")
    assert visible(tmp_path / "out") == []


@pytest.mark.slow
def test_a_terminal_shows_a_bar_with_rows_and_speed(model: str, long_corpus: Path, tmp_path: Path) -> None:
    command = job("embed", model, str(long_corpus / "0.jsonl"), tmp_path / "out", "--token-budget", "64")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    running = subprocess.Popen([SCRIPT, *command], stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    assert running.wait(timeout=20) == 0
    frames = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in re.split(r"[\r\n]+", shown.decode())]
    bars = [frame for frame in frames if "embedding" in frame]
    assert any("starting" in bar for bar in bars)
    assert any(re.search(r"\d+%  [\d,]+ rows", bar) for bar in bars)
    assert all(len(bar) <= 100 for bar in bars)
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1
    assert any(frame.startswith("2,500 rows, 160,000 tokens in ") for frame in frames)


def test_the_demo_shows_what_it_runs_and_what_came_out(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--progress", "none"]) == 0
    told = capsys.readouterr().out
    table = pd.read_parquet("demo-output")
    assert f"demo-output: {len(table)} rows, 1 shard" in told
    assert "POSITIVE" in told
    # The command it names does the same.
    (command,) = re.findall(r"^running: distilbeam (.*)", told, re.M)
    before = [path.read_bytes() for path in visible(Path("demo-output"))]
    assert main([*command.split(), "--if-exists", "overwrite", "--quiet"]) == 0
    assert [path.read_bytes() for path in visible(Path("demo-output"))] == before
    # It replaces its own output, and no other, even of the same file.
    assert main(["demo", "--quiet"]) == 0
    for more in (["--keep", "id"], ["--pooling", "cls"], ["--model", model]):
        assert main([*command.split(), "--if-exists", "overwrite", "--quiet", "--output", "changed", *more]) == 0
        assert main(["demo", "--quiet", "--output", "changed"]) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.parquet").write_bytes(b"PAR1")
    assert main(["demo", "--output", "other"]) == 2
