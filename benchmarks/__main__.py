"""The command: ``python -m benchmarks roofline|peers|scaling|gpu``."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from distilbeam.transforms import DistilbeamError
from distilbeam.transforms.distilbert.compute import choose_compute
from distilbeam.transforms.encoder import EngineSettings

from .checkpoint import SHAPES, save_random
from .peers import PEERS
from .report import Report, write_json

__all__ = ["main"]

_ABOUT = {
    "roofline": "the ceiling of matrix products, and our fraction of it",
    "peers": "the same corpus and weights through other libraries",
    "scaling": "peak memory and rate over rows, repeated texts, features and document length",
    "gpu": "roofline, peers and the ways of attention on CUDA",
}
_ROWS = {"roofline": 64, "peers": 32, "gpu": 4096}


class _Wrong(Exception):  # noqa: N818
    """One sentence for who called."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; 0 if it was, 2 with one sentence if it cannot be."""
    options = _parser().parse_args(argv)
    logging.getLogger().setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    try:
        _check(options)
        report = _run(options)
    except (_Wrong, DistilbeamError, ValueError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 2
    print(report.text())
    if options.json:
        write_json(report, options.json)
    if options.plot:
        from .plot import plot

        plot(report, options.plot)
    return 0


def _run(options: argparse.Namespace) -> Report:
    with tempfile.TemporaryDirectory(prefix="distilbeam-benchmarks-") as name:
        folder = Path(name)
        if options.benchmark == "scaling":
            from .scaling import scaling

            return scaling(options, folder, _tell)
        from .corpus import load

        corpus = load(options.corpus, options.rows, options.seed)
        model = Path(options.model) if options.model else save_random(folder / options.shape, SHAPES[options.shape])
        if options.benchmark == "roofline":
            from .roofline import roofline

            return roofline(model, corpus, options, folder, _tell)
        if options.benchmark == "peers":
            from .compare import compare

            return compare(model, corpus, options, folder, _tell)
        from .gpu import gpu

        return gpu(model, corpus, options, folder, _tell)


def _check(options: argparse.Namespace) -> None:
    """Fail before anything is measured."""
    if options.plot:
        _check_plot(options.plot)
    if options.benchmark == "gpu":
        import torch

        if not torch.cuda.is_available():
            raise _Wrong("gpu needs a CUDA device, and torch finds none here; roofline and peers run on the CPU")
    if options.model and not (Path(options.model) / "config.json").is_file():
        raise _Wrong(f"--model is {options.model!r}, which is no folder with a config.json; give a local checkpoint")
    for dtype in [options.dtype] if isinstance(options.dtype, str) else options.dtype:
        EngineSettings(options.device, dtype, options.threads, options.token_budget)
        choose_compute(options.device, dtype, options.threads)
    only = getattr(options, "only", None) or ()
    for name in only:
        if not any(peer.name.startswith(name) for peer in PEERS):
            raise _Wrong(f"--only {name!r} is the beginning of no peer; there are {', '.join(p.name for p in PEERS)}")


def _check_plot(path: Path) -> None:
    if find_spec("matplotlib") is None:
        raise _Wrong("--plot needs matplotlib: pip install matplotlib")
    from matplotlib.figure import Figure

    endings = sorted(Figure().canvas.get_supported_filetypes())
    if path.suffix[1:].lower() not in endings:
        raise _Wrong(f"--plot is {str(path)!r}; its ending must be one of {', '.join(endings)}")


def _tell(line: str) -> None:
    print(f"... {line}", file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, about in _ABOUT.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
        command.add_argument("--plot", type=Path, metavar="FILE", help="draw them there; the ending tells the format")
        command.add_argument("--model", metavar="FOLDER", help="a checkpoint; default: random weights, see --shape")
        command.add_argument(
            "--shape",
            choices=tuple(SHAPES),
            default="tiny" if name == "scaling" else "base",
            help="of the random weights (default %(default)s)",
        )
        command.add_argument("--repeats", type=_count, default=3, metavar="N", help="default %(default)s")
        command.add_argument("--seed", type=int, default=0, metavar="N", help="of the corpus (default 0)")
        command.add_argument("--threads", type=_count, metavar="N", help="CPU threads; default: as torch sees fit")
        command.add_argument("--token-budget", type=_count, metavar="N", help="tokens of one of our forward passes")
        if name == "scaling":
            _add_scaling(command)
        else:
            _add_corpus(command, name)
    return parser


def _add_corpus(command: argparse.ArgumentParser, name: str) -> None:
    command.add_argument(
        "--rows", type=_count, default=_ROWS[name], metavar="N", help="of the corpus (default %(default)s)"
    )
    command.add_argument(
        "--corpus",
        choices=("auto", "mix", "generated"),
        default="auto",
        help="mix: tweets, AG News and IMDB from DISTILBEAM_DATA; generated: random words, lengths as in the mix; "
        "auto (default): mix where DISTILBEAM_DATA is set",
    )
    device = "cuda" if name == "gpu" else "cpu"
    command.add_argument("--device", default=device, help=argparse.SUPPRESS if name != "gpu" else "default cuda")
    command.add_argument(
        "--dtype", nargs="+", default=["auto"], metavar="T", help="that we compute in, one or several (default auto)"
    )
    if name != "roofline":
        command.add_argument("--only", nargs="+", metavar="PEER", help="peers whose names begin so; default: all")


def _add_scaling(command: argparse.ArgumentParser) -> None:
    command.add_argument("--dtype", default="auto", metavar="T", help="that we compute in (default auto)")
    command.add_argument("--device", default="cpu", help="cpu (default), cuda or cuda:N")
    command.add_argument(
        "--rows", type=_count, nargs="+", default=[1000, 10_000], metavar="N", help="row counts (default 1000 10000)"
    )
    command.add_argument(
        "--lengths",
        type=_count,
        nargs="+",
        default=[16, 64, 256, 2048],
        metavar="N",
        help="tokens of a document; the model reads 512 of them (default 16 64 256 2048)",
    )
    command.add_argument(
        "--axes",
        nargs="+",
        choices=("rows", "repeats", "features", "lengths"),
        default=["rows", "repeats", "features", "lengths"],
        help="what to vary (default: all)",
    )
    command.add_argument(
        "--at", type=_count, default=1000, metavar="N", help="rows where something else varies (default 1000)"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


if __name__ == "__main__":
    sys.exit(main())
