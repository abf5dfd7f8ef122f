"""The options of the command line."""

import argparse
import re
import subprocess
import sys

import pytest

from distilbeam.pipelines import cli, options
from distilbeam.pipelines.cli import main
from distilbeam.transforms.errors import SettingsError

JOBS = ("embed", "classify", "tokenize", "featurize")
REQUIRED = ["--model", "m", "--input", "a", "b", "--output", "o"]


def required(command: str) -> list[str]:
    return [command, *REQUIRED, *(["--features", "label"] if command == "featurize" else [])]


def beam_parsers() -> dict[str, argparse.Action]:
    """Beam's options, asked of Beam itself."""
    from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

    found = {}
    for kind in PipelineOptions.__subclasses__():
        if kind.__module__.startswith("apache_beam.options"):
            parser = _BeamArgumentParser(allow_abbrev=False)
            kind._add_argparse_args(parser)
            found |= {flag: action for action in parser._actions for flag in action.option_strings}
    return found


def test_beam_flags_are_those_of_beams_parsers() -> None:
    known = {flag for flag in beam_parsers() if flag.startswith("--")} - {"--help"}
    assert known <= options.beam_flags()
    assert len(known) > 100


@pytest.mark.parametrize("command", JOBS)
def test_no_option_of_ours_is_one_of_beams(command: str) -> None:
    parsed, _ = options.parse(required(command))
    assert parsed.own & set(beam_parsers()) == {"-h", "--help"}


@pytest.mark.parametrize("command", options.COMMANDS)
def test_help_names_every_option_and_gives_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    told = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"  distilbeam {command} " in told
    parsed, _ = options.parse({"inspect": ["inspect", "o"], "demo": ["demo"]}.get(command, required(command)))
    listed = re.split(r"\n\n(?=\w+:\n)", told)
    assert all(any(flag in part for part in listed[1:]) for flag in parsed.own)
    assert max(map(len, told.splitlines())) <= 120


def test_every_example_of_the_help_is_a_command_that_parses(capsys: pytest.CaptureFixture[str]) -> None:
    seen = 0
    for command in ("", *options.COMMANDS):
        with pytest.raises(SystemExit):
            options.parse([*filter(None, [command]), "--help"])
        examples = capsys.readouterr().out.replace("\\\n", " ")
        for line in re.findall(r"^  distilbeam (\w+ [^|\n]*)", examples, re.M):
            parsed, flags = options.parse(line.replace("'", "").split())
            seen += 1
            assert parsed.command in options.COMMANDS
            assert flags == []
    assert seen >= 10


def test_help_and_wrong_usage_import_neither_beam_nor_torch_nor_pyarrow() -> None:
    script = (
        "import sys; from distilbeam.pipelines.cli import main; code = main(['embed', '--modle', 'm'])\n"
        "assert code == 2; assert not {'apache_beam', 'torch', 'pyarrow', 'rich'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


def test_lists_gather_over_repeated_options() -> None:
    parsed, _ = options.parse([*required("embed"), "--input", "c", "--text", "t", "u", "--text", "v", "--keep"])
    assert parsed.input == ["a", "b", "c"]
    assert parsed.text == ["t", "u", "v"]
    assert parsed.keep == []
    assert options.parse(required("embed"))[0].keep is None


def test_options_of_beam_are_left_in_order() -> None:
    passed = ["--runner", "FlinkRunner", "--streaming", "--experiments=a=b", "--temp_location", "gs://b/t"]
    _, flags = options.parse([*required("classify"), *passed, "--scores", "--", "--checkpointing_interval=5", "x"])
    assert flags == [*passed, "--checkpointing_interval=5", "x"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "missing COMMAND"),
        (["embd"], "did you mean embed?"),
        (["embed"], "missing --model, --input, --output"),
        (["featurize", *REQUIRED], "missing --features"),
        (["embed", *REQUIRED, "--max-lenght", "5"], "no option --max-lenght, did you mean --max-length?"),
        (["embed", *REQUIRED, "--max_length", "5"], "did you mean --max-length?"),
        (["embed", *REQUIRED, "--runer", "X"], "no option --runer, did you mean --runner?"),
        (["embed", *REQUIRED, "--temp-location=X"], "did you mean --temp_location?"),
        (["embed", *REQUIRED, "--mod", "m"], "no option --mod"),
        (["embed", *REQUIRED, "--qqq"], "options that only a job server knows come after --"),
        (["embed", *REQUIRED, "--scores"], "no option --scores of embed; classify has it"),
        (["tokenize", *REQUIRED, "--pooling=cls"], "no option --pooling of tokenize; embed and featurize have it"),
        (["inspect", "o", "--dtype", "int8"], "--dtype of inspect; embed, classify and featurize have it"),
        (["embed", *REQUIRED, "--quiet", "stray"], "did not expect 'stray'"),
        (["embed", *REQUIRED, "--temp_location=X", "stray"], "did not expect 'stray'"),
        (["embed", *REQUIRED, "--max-length", "0"], "a whole number from 1, not '0'"),
        (["embed", *REQUIRED, "--dtype", "int4"], "'int4'"),
        (["inspect"], "missing OUTPUT"),
        (["inspect", "o", "--rows", "-1"], "a whole number from 0, not '-1'"),
        (["embed", *REQUIRED, "--max-shard-bytes", "0"], "a whole number from 1, not '0'"),
        (["embed", *REQUIRED, "--compression", "lzma"], "'lzma'"),
        (["inspect", "o", "--jsn"], "did you mean --json?"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_code_2(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"distilbeam: error: [^\n]+\n", err)
    assert message in err


def test_a_wrong_value_of_a_beam_option_is_a_settings_error() -> None:
    options.check_flags(["--num_workers=3", "--experiments=x", "--checkpointing_interval=5"])
    with pytest.raises(SettingsError, match=r"--num_workers: invalid int value: 'many'"):
        options.check_flags(["--num_workers=many"])


@pytest.mark.parametrize(
    ("flags", "direct", "here"),
    [
        ([], True, True),
        (["--runner=directrunner"], True, True),
        (["--runner", "direct"], True, True),
        (["--runner", "FnApiRunner", "--direct_running_mode=multi_threading"], True, True),
        (["--runner=DIRECT", "--direct_running_mode", "multi_processing"], True, False),
        (["--direct_running_mode=multi_processing", "--direct_num_workers=2"], True, False),
        (["--runner=FlinkRunner"], False, False),
        (["--runner=InteractiveRunner"], False, False),
    ],
)
def test_where_a_job_runs(flags: list[str], direct: bool, here: bool) -> None:
    asked = options.check_flags(flags)
    assert (options.is_direct(asked), options.is_in_process(asked)) == (direct, here)
    assert cli._runs_here(flags) == here


def test_flags_of_recurring_jobs() -> None:
    found, rest = options.parse(
        [*required("embed"), "--incremental", "--since", "yesterday", "--if-changed", "overwrite"]
    )
    assert (found.incremental, found.since, found.if_changed, rest) == (True, "yesterday", "overwrite", [])
    found, _ = options.parse(required("tokenize"))
    assert (found.incremental, found.since, found.if_changed) == (False, None, "error")
    with pytest.raises(SettingsError, match="--if-changed"):
        options.parse([*required("embed"), "--if-changed", "resume"])


@pytest.mark.parametrize(
    ("if_exists", "recurring", "if_changed", "mode"),
    [
        ("error", False, "error", "error"),
        ("error", True, "error", "resume"),
        ("resume", True, "error", "resume"),
        ("overwrite", True, "error", "overwrite"),
        ("error", True, "overwrite", "overwrite"),
        ("resume", False, "overwrite", "overwrite"),
        ("error", False, "overwrite", None),
        ("overwrite", True, "overwrite", None),
    ],
)
def test_what_a_commit_may_do(if_exists: str, recurring: bool, if_changed: str, mode: str | None) -> None:
    from distilbeam.pipelines.job import _commit_mode

    if mode is None:
        with pytest.raises(SettingsError, match="'overwrite'"):
            _commit_mode(if_exists, recurring, if_changed)
    else:
        assert _commit_mode(if_exists, recurring, if_changed) == mode
