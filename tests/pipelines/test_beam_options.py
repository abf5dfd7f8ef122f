"""Options of Beam as Python code gives them, against Beam's own reading of them."""

from __future__ import annotations

from typing import Any

import pytest
from apache_beam.options.pipeline_options import DirectOptions, GoogleCloudOptions, PipelineOptions, StandardOptions

from distilbeam.pipelines.beam_options import as_pipeline_options
from distilbeam.pipelines.job import run, tokenize
from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.inference import Tokenize

FLAGS = ["--runner=FlinkRunner", "--experiments=a", "--experiments=b", "--streaming", "--num_workers=3"]


class OptionsOfTheUser(PipelineOptions):
    @classmethod
    def _add_argparse_args(cls, parser: Any) -> None:
        parser.add_argument("--level_of_mine", type=int)


@pytest.mark.parametrize(
    "given",
    [
        FLAGS,
        tuple(FLAGS),
        iter(FLAGS),
        {"runner": "FlinkRunner", "experiments": ["a", "b"], "streaming": True, "num_workers": 3},
        {"--runner": "FlinkRunner", "experiments": ("a", "b"), "streaming": True, "num_workers": 3, "region": None},
        PipelineOptions(FLAGS),
        PipelineOptions(runner="FlinkRunner", experiments=["a", "b"], streaming=True, num_workers=3),
    ],
)
def test_every_form_is_read_as_beam_reads_its_flags(given: Any) -> None:
    found = as_pipeline_options(given)
    assert found.get_all_options(drop_default=True) == PipelineOptions(FLAGS).get_all_options(drop_default=True)


def test_none_and_nothing_are_defaults() -> None:
    for given in (None, [], {}):
        assert as_pipeline_options(given).get_all_options(drop_default=True) == {}


def test_a_switch_that_is_off() -> None:
    found = as_pipeline_options({"use_public_ips": False, "streaming": False})
    assert found.view_as(StandardOptions).streaming is False
    assert found.get_all_options()["use_public_ips"] is False


def test_options_of_classes_of_the_user_are_known() -> None:
    for given in (["--level_of_mine=3"], {"level_of_mine": 3}):
        assert as_pipeline_options(given).view_as(OptionsOfTheUser).level_of_mine == 3


def test_what_only_a_job_server_knows_comes_after_two_dashes() -> None:
    found = as_pipeline_options(["--runner=FlinkRunner", "--", "--checkpointing_interval=5"])
    assert found.view_as(StandardOptions).runner == "FlinkRunner"
    assert found.get_all_options(retain_unknown_options=True)["checkpointing_interval"] in (5, "5")


def test_options_of_the_caller_stay_as_they_are() -> None:
    given = PipelineOptions(["--direct_running_mode=multi_processing"])
    as_pipeline_options(given).view_as(DirectOptions).direct_running_mode = "in_memory"
    as_pipeline_options(given).view_as(GoogleCloudOptions).region = "r"
    assert given.view_as(DirectOptions).direct_running_mode == "multi_processing"
    assert given.view_as(GoogleCloudOptions).region != "r"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--runer=FlinkRunner"], "there is no option --runer, did you mean --runner?"),
        ({"runer": "FlinkRunner"}, "there is no option --runer, did you mean --runner?"),
        (["--checkpointing_interval=5"], "options that only a job server knows come after --"),
        (["runner=FlinkRunner"], "did not expect"),
        ("--runner=FlinkRunner", r"not '--runner=FlinkRunner'; give a list such as \['--runner=FlinkRunner'\]"),
        (7, "not 7; give a list"),
        ([("--runner", "FlinkRunner")], "no text; give a list"),
        ({1: "x"}, "has 1 for the name"),
        ({"num_workers": "many"}, "invalid int value: 'many'"),
    ],
)
def test_what_is_no_option_is_refused(given: Any, told: str) -> None:
    with pytest.raises(SettingsError, match=told):
        as_pipeline_options(given)
    with pytest.raises(SettingsError, match=told):
        run(Tokenize("none"), input="in", output="out", beam_options=given)


def test_an_option_of_beam_given_as_a_setting() -> None:
    with pytest.raises(SettingsError, match=r"no setting 'runner'.*such as \{'runner': \.\.\.\}"):
        tokenize("none", input="in", output="out", runner="FlinkRunner")
    with pytest.raises(SettingsError, match="did you mean `max_length`"):
        tokenize("none", input="in", output="out", max_lenght=5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"text": None}, "`text` must be a column name or a list of them, not None"),
        ({"keep": 5}, "`keep` must be a column name or a list of them, not 5"),
        ({"types": ["id=int64"]}, "`types` must be a dict of the Arrow type of each column"),
        ({"types": "id=int64"}, "`types` must be a dict of the Arrow type of each column"),
        ({"input": None}, "a path or URL must be .*not None"),
        ({"output": 3}, "a path or URL must be .*not 3"),
        ({"columns": 3}, "`columns` must be"),
    ],
)
def test_settings_of_a_wrong_kind_are_told(settings: dict[str, Any], told: str, model: str) -> None:
    with pytest.raises(SettingsError, match=told):
        tokenize(model, **{"input": "in", "output": "out", **settings})
