"""Settings in messages, as the command line spells them."""

import shlex

import pytest

from distilbeam.pipelines.options import spellings
from distilbeam.pipelines.spelling import as_options

TOLD = [
    ("raise `max_rejects` and go on", "raise --max-rejects and go on"),
    ("set `if_exists='resume'`", "set --if-exists resume"),
    ("(`if_changed='overwrite'` where", "(--if-changed overwrite where"),
    ("`max_length=512`: too long", "--max-length 512: too long"),
    ("set `max_rejects=None`", "set --max-rejects none"),
    ("set `incremental=True`, `normalize=False`.", "set --incremental, --no-normalize."),
    ("give `types={'a b': 'int64', 'c': 'string'}`", "give --types 'a b=int64' c=string"),
    ("give `text=['title', 'body']`; then", "give --text title body; then"),
    ("`output_format` was 'parquet'", "--output-format was 'parquet'"),
    ("`separator='\\n'` joins", "--separator '\n' joins"),
]
UNTOUCHED = [
    "cannot read '/data/max_rejects/batch.parquet'",
    "cannot read '/data/if_exists=1/types=2/x.parquet'",
    "cannot read '/data/`max_rejects`/x'",
    "there is no column '`format`'; it has 3",
    'there is no column "raise max_rejects"',
    "`ledger` has no option",
    "a quote ` and `another` here",
]


@pytest.mark.parametrize(("message", "told"), TOLD)
def test_settings_become_options(message: str, told: str) -> None:
    assert as_options(message, spellings()) == told


@pytest.mark.parametrize("message", UNTOUCHED)
def test_paths_and_columns_stay_as_they_are(message: str) -> None:
    assert as_options(message, spellings()) == message


def test_each_option_takes_what_its_spelling_says() -> None:
    from distilbeam.pipelines.options import parse

    told = as_options("`if_exists='resume'` `normalize=False` `max_length=7` `text=['a', 'b c']`", spellings())
    words = shlex.split(told)
    options, _ = parse(["embed", "--model", "m", "--input", "i", "--output", "o", *words])
    assert (options.if_exists, options.normalize, options.max_length) == ("resume", False, 7)
    assert options.text == ["a", "b c"]
