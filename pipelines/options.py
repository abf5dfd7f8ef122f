"""The options of the command line: ours, and those that are handed on to Apache Beam."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import importlib.util
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from distilbeam import __version__
from distilbeam.transforms.errors import SettingsError
from distilbeam.transforms.names import FEATURES

from .quiet import warnings_of_imports_kept_back
from .spelling import option_names
from .usage import BEAM, COMMANDS, EPILOG, EXAMPLES

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

__all__ = ["COMMANDS", "beam_flags", "check_flags", "check_names", "is_direct", "is_in_process", "parse", "spellings"]

_DIRECT = ("", "direct", "directrunner", "fnapi", "fnapirunner")

# Checked by us, after unknown options, so that one who writes --modle is told about that.
_REQUIRED = ("model", "input", "features", "output")


class _Parser(argparse.ArgumentParser):
    """A parser that raises ``SettingsError`` where argparse would print its usage and exit."""

    def __init__(self, **settings: Any) -> None:
        settings |= {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**settings)

    def error(self, message: str) -> NoReturn:
        raise SettingsError(
            f"{message.replace('the following arguments are required:', 'missing')}; see {self.prog} -h"
        )


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command line, and the flags that are left for Beam.

    Raises:
        SettingsError: an option is wrong, missing or known to nobody.
        SystemExit: help or the version was asked for and has been printed.
    """
    argv = list(argv)
    unchecked: list[str] = []
    if "--" in argv:
        cut = argv.index("--")
        argv, unchecked = argv[:cut], argv[cut + 1 :]
    if argv and not argv[0].startswith("-") and argv[0] not in COMMANDS:
        raise SettingsError(
            f"there is no command {argv[0]!r}{_suggest(argv[0], COMMANDS)}; the commands are {', '.join(COMMANDS)}"
        )
    parser = _parser()
    options, flags = parser.parse_known_args(argv)
    beam = set() if options.command in ("inspect", "demo") else beam_flags()
    check_names(flags, options.own, beam, options.command, options.elsewhere)
    missing = [name for name in _REQUIRED if getattr(options, name, True) is None]
    if missing:
        names = ", ".join(f"--{name}" for name in missing)
        raise SettingsError(f"missing {names}; see distilbeam {options.command} -h")
    return options, flags + unchecked


@functools.cache
def spellings() -> dict[str, str]:
    """The option of each setting, whichever command has it, such as ``{"if_exists": "--if-exists"}``."""
    return option_names(_parser())


def beam_flags() -> set[str]:
    """Every option Beam knows, read from its source, since importing Beam takes seconds."""
    spec = importlib.util.find_spec("apache_beam")
    places = spec.submodule_search_locations if spec else None
    source = "".join(Path(place, "options", "pipeline_options.py").read_text() for place in places or ())
    return set(re.findall(r"""['"](--[a-z0-9][\w-]*)['"]""", source))


def check_flags(flags: Sequence[str] | Mapping[str, Any]) -> PipelineOptions:
    """The options of Beam, given as flags or as values by name, once it has checked their values.

    Raises:
        SettingsError: a value is wrong.
    """
    from apache_beam.options.pipeline_options import PipelineOptions

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint), warnings_of_imports_kept_back():
            if isinstance(flags, Mapping):
                options = PipelineOptions.from_dictionary(dict(flags))
            else:
                options = PipelineOptions(list(flags))
            options.get_all_options(retain_unknown_options=True)
    except SystemExit:
        raise SettingsError(complaint.getvalue().strip().rpartition("error: ")[2]) from None
    return options


def is_direct(options: PipelineOptions) -> bool:
    """Whether Beam's runner for one machine, which is also the default, runs the job; Beam takes names in any case."""
    from apache_beam.options.pipeline_options import StandardOptions

    return (options.view_as(StandardOptions).runner or "").lower() in _DIRECT


def is_in_process(options: PipelineOptions) -> bool:
    """Whether the job runs in this very process, where it can be watched."""
    from apache_beam.options.pipeline_options import DirectOptions

    return is_direct(options) and options.view_as(DirectOptions).direct_running_mode != "multi_processing"


def check_names(
    flags: Iterable[str],
    own: set[str],
    beam: set[str],
    command: str = "",
    elsewhere: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Checks the names of flags that are left for Beam.

    Args:
        flags: names and values, in order.
        own: the options of the command, which are suggested for unknown ones too.
        beam: the options of Beam.
        command: the command.
        elsewhere: the commands that have each option of ours.

    Raises:
        SettingsError: a name is not known, or a value belongs to none.
    """
    expected = True  # a word after an option of Beam's is its value
    for flag in flags:
        name = flag.partition("=")[0]
        if not name.startswith("-") or _is_number(name):
            if expected:
                raise SettingsError(f"did not expect {name!r}; every setting is given as --name value")
            expected = True
        elif name not in beam and (others := (elsewhere or {}).get(name)):
            raise SettingsError(f"there is no option {name} of {command}; {_listed(others)} {_has(others)} it")
        elif name not in beam:
            advice = "; options that only a job server knows come after --" if beam else ""
            raise SettingsError(f"there is no option {name}{_suggest(name, own | beam) or advice}")
        else:
            expected = "=" in flag


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _is_number(word: str) -> bool:
    return re.fullmatch(r"-\d+(\.\d+)?", word) is not None


def _suggest(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word.replace("_", "-"), sorted(known), 1, 0.7)
    close = close or difflib.get_close_matches(word, sorted(known), 1, 0.7)
    return f", did you mean {close[0]}?" if close else ""


def _count(text: str, least: int = 1) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, not {text!r}")
    return int(text)


def _count_or_none(text: str) -> int:
    return _count(text, 0)


def _parser() -> _Parser:
    parser = _Parser(
        prog="distilbeam", description="DistilBERT features for large text corpora, on Apache Beam.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"distilbeam {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    elsewhere: dict[str, list[str]] = {}
    for name, summary in COMMANDS.items():
        job = name not in ("inspect", "demo")
        usage = {"inspect": "distilbeam inspect OUTPUT [options]", "demo": "distilbeam demo [options]"}
        command = commands.add_parser(
            name,
            help=summary,
            usage=usage.get(
                name,
                f"distilbeam {name} --model M --input PATH... --text COLUMN... --output OUT [options] [Beam options]",
            ),
            description=summary[0].upper() + summary[1:] + ".",
            epilog=EXAMPLES[name] + (BEAM if job else ""),
        )
        if job:
            _add_input(command)
            _add_model(command, name)
            _add_output(command)
            _add_run(command)
        elif name == "inspect":
            command.add_argument("output", metavar="OUTPUT", help="folder that distilbeam has written, or its URL")
            command.add_argument("--rows", type=_count_or_none, default=5, metavar="N", help="rows to show (default 5)")
            command.add_argument("--json", action="store_true", help="print everything as JSON")
        else:
            command.add_argument(
                "--output", default="demo-output", metavar="OUT", help="folder to write (default demo-output)"
            )
            _add_run(command)
        if name == "inspect":
            _add_log_level(command)
        own = {flag for action in command._actions for flag in action.option_strings}
        for flag in own:
            elsewhere.setdefault(flag, []).append(name)
        command.set_defaults(own=own, elsewhere=elsewhere)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("input")
    group.add_argument(
        "--input",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="files, folders or globs; local or s3://, gs://, az:// and other fsspec URLs",
    )
    group.add_argument(
        "--text",
        nargs="+",
        action="extend",
        metavar="COLUMN",
        help="column with the text, or field of a struct such as review.body; several are joined (default text)",
    )
    group.add_argument(
        "--keep", nargs="*", action="extend", metavar="COLUMN", help="columns to keep in the output (default all)"
    )
    group.add_argument("--id", metavar="COLUMN", help="column that names a row in the rejects")
    group.add_argument(
        "--format",
        choices=("auto", "parquet", "jsonl", "csv", "tsv", "text", "arrow", "avro"),
        default="auto",
        help="format of the files (default auto, by their names, else by their first bytes)",
    )
    group.add_argument(
        "--types",
        nargs="+",
        action="extend",
        metavar="NAME=TYPE",
        help="types of columns as Arrow names them, such as stars=int64 'at=timestamp[us, tz=UTC]' "
        "'price=decimal128(10, 2)' 'tags=list<string>' 'place=struct<city: string, height: double>'",
    )
    group.add_argument(
        "--columns",
        type=lambda names: names.split(","),
        metavar="NAME,NAME",
        help="names of the columns of CSV and TSV files without a header, such as id,text,stars",
    )
    group.add_argument("--csv-delimiter", default=",", metavar="C", help=r"between fields of CSV, such as ';' or '\t'")
    group.add_argument(
        "--csv-quote", default='"', metavar="C", help="around fields of CSV, '' if quotes are text (default \")"
    )
    group.add_argument(
        "--csv-escape", default="", metavar="C", help="before a character of CSV that is text (default none)"
    )
    group.add_argument(
        "--separator", default=" ", metavar="TEXT", help="what joins several text columns (default a space)"
    )
    group.add_argument(
        "--nulls", choices=("reject", "keep"), default="reject", help="rows without a text (default reject)"
    )
    group.add_argument(
        "--bad-files",
        choices=("fail", "reject"),
        default="fail",
        help="damaged files: end the job, or set aside what cannot be read as a reject (default fail)",
    )
    group.add_argument("--dry-run", action="store_true", help="only plan: tell what would be read and written")
    group.add_argument("--limit", type=_count, metavar="N", help="read the first N rows alone, for a try")
    group.add_argument("--strict", action="store_true", help="end the job at a key of JSON that is no column")
    group.add_argument(
        "--decode-bytes",
        type=_count,
        metavar="N",
        help="memory for decoding a Parquet, Arrow or Avro file, or for a window of zstd (default 536870912)",
    )
    group.add_argument(
        "--split-bytes", type=_count, metavar="N", help="bytes of text in a split, the unit of retry (default 8388608)"
    )
    group.add_argument(
        "--batch-rows", type=_count, metavar="N", help="rows of a record batch, which are sorted together"
    )
    group.add_argument("--batch-bytes", type=_count, metavar="N", help="bytes of a record batch, at most")
    group.add_argument(
        "--max-line-bytes",
        type=_count,
        metavar="N",
        help="bytes of a line, a longer one is rejected (default 67108864)",
    )


def _add_model(parser: argparse.ArgumentParser, command: str) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="M", help="a local folder, an fsspec URL, or a Hub id such as name@revision")
    group.add_argument(
        "--model-sha256",
        metavar="HEX",
        help="SHA-256 of its model.safetensors, or of what sha256sum prints for the files of its index; with any other "
        "the job fails (default: any will do)",
    )
    group.add_argument(
        "--max-length", type=_count, metavar="N", help="tokens of a text that are read (default: the model's)"
    )
    if command != "tokenize":
        group.add_argument(
            "--token-budget",
            type=_count,
            metavar="N",
            help="tokens of one forward pass, at most (default: what suits the device)",
        )
        group.add_argument(
            "--dtype",
            choices=("auto", "float32", "bfloat16", "float16", "int8"),
            default="auto",
            help="precision of the model (default auto, chosen on the worker)",
        )
        group.add_argument(
            "--device",
            default="auto",
            metavar="D",
            help="auto, cpu, cuda or cuda:N (default auto, chosen on the worker)",
        )
        group.add_argument(
            "--threads", type=_count, metavar="N", help="threads of the model (default: as torch sees fit)"
        )
    group.add_argument(
        "--stall-timeout",
        type=_count_or_none,
        default=600,
        metavar="S",
        help="seconds without progress after which the process ends, to be tried again; 0 for never (default 600)",
    )
    group = parser.add_argument_group("features")
    if command == "featurize":
        group.add_argument(
            "--features",
            nargs="+",
            action="extend",
            choices=FEATURES,
            metavar="F",
            help=f"any of {', '.join(FEATURES)}",
        )
    if command in ("embed", "featurize"):
        group.add_argument(
            "--pooling", choices=("mean", "cls", "max"), help="how a vector is made (default: the model's)"
        )
        group.add_argument(
            "--normalize", action=argparse.BooleanOptionalAction, help="vectors of length 1 (default: the model's)"
        )
        group.add_argument(
            "--dimensions", type=_count, metavar="N", help="keep the first N numbers of a vector (default: the model's)"
        )
        group.add_argument(
            "--embedding-dtype",
            choices=("float32", "float16"),
            default="float32",
            help="type of the vectors; Spark, Delta and Daft before 0.7 cannot open a Parquet file that holds float16",
        )
    if command == "classify":
        group.add_argument("--scores", action="store_true", help="the scores of all labels too")
    group.add_argument("--prefix", default="", metavar="P", help="put before the names of the new columns")


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--output", metavar="OUT", help="folder to write, or its URL")
    group.add_argument(
        "--if-exists",
        choices=("error", "overwrite", "resume"),
        default="error",
        help="what to do with an output that is there; resume skips finished splits (default error)",
    )
    group.add_argument(
        "--incremental",
        action="store_true",
        help="keep the output in step with a growing input: read new and changed files only",
    )
    group.add_argument(
        "--since",
        metavar="URL",
        help="an earlier output; this one gets only files that are new or changed since",
    )
    group.add_argument(
        "--if-changed",
        choices=("error", "overwrite"),
        default="error",
        help="what to do where model or settings are not those of before; overwrite starts anew (default error)",
    )
    group.add_argument(
        "--max-rejects",
        default="1%",
        metavar="N",
        help="rows that may be set aside, a count, a share or none for no limit (default 1%%)",
    )
    group.add_argument("--rejects-include-text", action="store_true", help="write the text of rejected rows too")
    group.add_argument("--output-format", choices=("parquet", "jsonl"), default="parquet", help="default parquet")
    group.add_argument(
        "--compression",
        choices=("auto", "zstd", "gzip", "snappy", "lz4", "none"),
        default="auto",
        help="of the files written; snappy and lz4 for Parquet only (default auto: zstd for Parquet, none for jsonl)",
    )
    group.add_argument(
        "--vector-type",
        choices=("fixed", "list"),
        default="fixed",
        help="how Parquet declares vectors; list for Beam's as_rows and YAML, which know no fixed size (default fixed)",
    )
    group.add_argument(
        "--max-shard-bytes", type=_count, metavar="N", help="largest file that is written (default 268435456)"
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument(
        "--progress",
        choices=("auto", "bar", "log", "none"),
        default="auto",
        help="default auto: a bar on a terminal, log lines elsewhere",
    )
    _add_log_level(group)


def _add_log_level(parser: Any) -> None:
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="debug also tells where a failure came from (default warning)",
    )
