"""The command ``distilbeam``."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, TypeVar

from distilbeam.transforms.errors import (
    CheckpointError,
    DistilbeamError,
    InputError,
    OutputExistsError,
    SettingsError,
)
from distilbeam.transforms.metrics import counting

from .options import check_flags, is_direct, is_in_process, parse, spellings
from .spelling import OptionFormatter, as_options

__all__ = ["main"]

T = TypeVar("T")

_WRONG_INPUT = (SettingsError, InputError, CheckpointError, OutputExistsError)


class _Terminated(BaseException):
    """SIGTERM has come."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if all went well, 2 if the input or the settings are wrong, 1 if a job failed.
    """
    options: Namespace | None = None
    try:
        with _silent():
            options, flags = parse(sys.argv[1:] if argv is None else argv)
            _quieten(options.log_level, flags)
        return _COMMANDS.get(options.command, _job)(options, flags)
    except BrokenPipeError:
        # Whoever read our output, such as `head`, has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, _Terminated) as stop:
        return _code(stop)
    except DistilbeamError as error:
        _say(f"error: {_spelled(str(error))}")
        _trace(error, options)
        return 2 if isinstance(error, _WRONG_INPUT) else 1
    except Exception as error:
        from .failures import explain

        hint = "" if _debugging(options) else "; run it with --log-level debug to see where"
        _say(f"error: the job failed with {_spelled(explain(error))}{hint}")
        _trace(error, options)
        return 1


def _job(options: Namespace, flags: list[str]) -> int:
    """``embed``, ``classify``, ``tokenize`` and ``featurize``."""
    settings = {name: value for name, value in vars(options).items() if name not in _NOT_SETTINGS}
    settings["text"] = options.text or "text"
    settings["types"] = _types(options.types)
    return _launch(options, flags, options.command, settings)


def _launch(options: Namespace, flags: list[str], command: str, settings: dict[str, Any]) -> int:
    from .progress import TITLES, Progress

    here = _runs_here(flags)
    how = options.progress if here and not options.quiet else "none"
    with Progress(how, TITLES[command]) as progress:

        def work() -> Any:
            if here:
                _start_decoder(settings["input"], settings.get("format", "auto"))
            from . import job

            with counting(progress.live):
                return getattr(job, command)(**settings, beam_options=check_flags(flags))

        from .failures import deaths_noted, told_death

        with deaths_noted() as codes:
            try:
                summary = _interruptible(work, progress, settings["output"])
            except Exception as error:
                if not codes or isinstance(error, _WRONG_INPUT):
                    raise
                raise DistilbeamError(told_death(codes[0])) from error
    if options.quiet:
        return 0
    if summary is None:
        _say(f"the runner has the job; once it is done, distilbeam inspect {settings['output']} shows the output")
        return 0
    if settings.get("dry_run"):
        from .display import show_preview

        show_preview(summary, _console())
        return 0
    from .display import show_summary

    show_summary(summary, _console())
    return 0


def _start_decoder(inputs: Sequence[str], format: str) -> None:
    """Starts the decoder of typed files where names tell that it is needed; Beam takes longer than it to import."""
    from distilbeam.transforms.input.formats.kinds import CONTAINERS, detect

    for url in inputs:
        with suppress(InputError):
            if detect(url, None if format == "auto" else format)[0] in CONTAINERS:
                from distilbeam.transforms.input.sandbox import warm

                warm()
                return


def _demo(options: Namespace, flags: list[str]) -> int:
    from .demo import equivalent, settings

    chosen = settings(options.output)
    if not options.quiet:
        _console().print(f"running: {equivalent(chosen)}", soft_wrap=True, markup=False)
    code = _launch(options, flags, "featurize", chosen)
    if code == 0 and not options.quiet:
        from .display import show_inspection
        from .inspection import inspect

        console = _console()
        console.print(f"\nlooking: distilbeam inspect {options.output}\n", soft_wrap=True, markup=False)
        show_inspection(inspect(options.output, rows=3), console, _spelled)
    return code


def _inspect(options: Namespace, _: list[str]) -> int:
    from .inspection import inspect

    found = inspect(options.output, rows=options.rows)
    if options.json:
        import json

        sys.stdout.write(json.dumps(found.to_dict(), indent=2, default=str) + "\n")
    else:
        from .display import show_inspection

        show_inspection(found, _console(), _spelled)
    sys.stdout.flush()
    return 0


_COMMANDS: dict[str, Callable[[Namespace, list[str]], int]] = {"inspect": _inspect, "demo": _demo}
_NOT_SETTINGS = ("command", "own", "elsewhere", "quiet", "progress", "log_level")


def _interruptible(work: Callable[[], T], progress: Any, output: str) -> T:
    """Do the work in a thread, so that this one can end the process at once, even amid a model pass.

    Ending it harms nothing: what is not committed is not visible, and finished splits stay staged.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            failure.append(error)

    main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, _terminate) if main else None
    thread = threading.Thread(target=target, name="job", daemon=True)
    try:
        thread.start()
        while thread.is_alive():
            thread.join(0.5)
    except (KeyboardInterrupt, _Terminated) as stop:
        progress.close()
        from .failures import commits_now

        if commits_now(output):
            _say(f"stopped amid the commit to {output}, of which a part can be read; finish it with --if-exists resume")
        else:
            _say(f"stopped; finished splits, if any, are kept in {output}; go on with --if-exists resume")
        _leave(_code(stop))
    finally:
        if main:
            signal.signal(signal.SIGTERM, before)
    if failure:
        raise failure[0]
    return outcome[0]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise _Terminated


def _code(stop: BaseException) -> int:
    return 143 if isinstance(stop, _Terminated) else 130


def _leave(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _runs_here(flags: Sequence[str]) -> bool:
    # Without a flag the answer needs no Beam, which takes seconds to import.
    return not flags or is_in_process(check_flags(flags))


def _types(pairs: Sequence[str] | None) -> dict[str, str] | None:
    for pair in pairs or ():
        if not all(pair.partition("=")):
            raise SettingsError(f"--types takes NAME=TYPE, such as stars=int64 or 'tags=list<string>', not {pair!r}")
    return {name: kind for name, _, kind in (pair.partition("=") for pair in pairs)} if pairs else None


@contextmanager
def _silent() -> Iterator[None]:
    """Keep back what Beam says while it is imported, for its options, of optional parts that are not installed."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _quieten(level: str, flags: Sequence[str]) -> None:
    """Let pass what a user can act on: our own log, and of Beam's only what a runner elsewhere says."""
    if level != "debug":
        warnings.simplefilter("ignore")
    ours = getattr(logging, level.upper())
    # Not more than warnings even when debugging: what libraries say then may hold data and credentials.
    here = not flags or is_direct(check_flags(flags))
    others = logging.WARNING if level == "debug" else logging.CRITICAL if here else logging.ERROR
    runners = others if here else logging.INFO

    def wanted(record: logging.LogRecord) -> bool:
        if record.exc_info is not None or "Traceback" in record.getMessage():
            # It ends with a message that may quote a document.
            return False
        if record.name.startswith("distilbeam"):
            return record.levelno >= ours
        return record.levelno >= (runners if record.name.startswith("apache_beam.runners") else others)

    handler = logging.StreamHandler()
    handler.setFormatter(OptionFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%H:%M:%S", spellings()))
    handler.addFilter(wanted)
    logging.basicConfig(handlers=[handler], level=min(ours, runners, others), force=True)


def _console() -> Any:
    from rich.console import Console

    # Rich takes 80 columns where there is no terminal, which cuts more than is needed.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    return Console(width=width, highlight=False)


def _debugging(options: Namespace | None) -> bool:
    return options is not None and options.log_level == "debug"


def _trace(error: BaseException, options: Namespace | None) -> None:
    """Where an error came from, without its message or those of its causes."""
    if not _debugging(options):
        return
    from .failures import frames

    current: BaseException | None = error
    while current is not None:
        sys.stderr.write(f"{type(current).__name__} at\n" + "".join(f"  {place}\n" for place in frames(current)))
        current = current.__cause__ or current.__context__


def _spelled(message: str) -> str:
    return as_options(message, spellings())


def _say(message: str) -> None:
    # A path may hold anything, even what commands a terminal.
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in message)
    sys.stderr.write(f"distilbeam: {shown}\n")
    sys.stderr.flush()
