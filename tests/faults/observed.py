"""The command line with everything it lets out written down, and with faults whose errors quote documents.

``python -m tests.faults.observed COMMAND... [AND COMMAND...]`` runs ``distilbeam COMMAND...``, with a word
``fault=NAME`` before it under a fault, and ends with the last code; all are noted. ``OBSERVE`` names the folder that
takes what is seen, ``OBSERVE_FAULT`` the fault; worker processes are observed as well, through ``sitecustomize``.
"""

from __future__ import annotations

import base64
import bz2
import errno
import faulthandler
import logging
import os
import sys
import threading
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

__all__ = ["SITE", "chain", "install", "main"]

SITE = "import os\nif os.environ.get('OBSERVE'):\n    from tests.faults.observed import install\n    install()\n"
"""sitecustomize.py of the processes to be observed."""

_busy = threading.local()


def note(kind: str, text: str) -> None:
    """Add to what this process was seen to do."""
    if getattr(_busy, "now", False):
        return  # what writing it down does is not of interest, and would never end
    _busy.now = True
    try:
        with open(f"{os.environ['OBSERVE']}/{kind}.{os.getpid()}", "ab", buffering=0) as file:
            file.write((text + "\n").encode("utf-8", "backslashreplace"))
    finally:
        _busy.now = False


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and all it was raised from or beside, suppressed or not."""
    pending, seen = [error], set()
    while pending:
        current = pending.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending += [each for each in (current.__cause__, current.__context__) if each is not None]
        pending += getattr(current, "exceptions", ())


def note_error(error: BaseException) -> None:
    """All that an error says, and what faulthandler says meanwhile."""
    for each in chain(error):
        told = [str(each), repr(each), repr(each.args), repr(getattr(each, "__notes__", None)), repr(each.__dict__)]
        note("errors", "\n".join(told + traceback.format_exception(each)))
    with open(f"{os.environ['OBSERVE']}/faulthandler.{os.getpid()}", "ab") as file:
        faulthandler.dump_traceback(file)


class _Everything(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        note("logs", self.format(record) + repr(record.args))
        if record.exc_info and record.exc_info[1] is not None:
            note_error(record.exc_info[1])


def install() -> None:
    """Observe this process, and put the fault into it."""
    sys.addaudithook(_audit)
    handler = _Everything(logging.DEBUG)
    handler.setFormatter(logging.Formatter("%(name)s %(pathname)s %(threadName)s %(message)s"))
    configure = logging.basicConfig

    def and_everything(*given: Any, **named: Any) -> None:
        configure(*given, **named)
        root = logging.getLogger()
        root.addHandler(handler)
        root.setLevel(logging.DEBUG)

    logging.basicConfig = and_everything
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.DEBUG)
    _observe_beam()
    fault = os.environ.get("OBSERVE_FAULT")
    if fault:
        FAULTS[fault](fault)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        # Only what is written; of all the modules that are read there would be no end.
        _, mode, flags = args
        if not (flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else "r" not in str(mode)):
            return
    elif event not in ("os.mkdir", "os.rename", "os.link", "os.symlink", "subprocess.Popen", "os.putenv"):
        return
    with suppress(Exception):
        note("names", f"{event} {args!r}")


def _observe_beam() -> None:
    from apache_beam import Pipeline
    from apache_beam.internal import pickler

    dumps = pickler.dumps

    def seen_dumps(value: Any, *given: Any, **named: Any) -> bytes:
        found: bytes = dumps(value, *given, **named)
        note("pickles", repr(found) + repr(_unpacked(found)))
        return found

    pickler.dumps = seen_dumps
    run = Pipeline.run

    def seen_run(self: Any, *given: Any, **named: Any) -> Any:
        note("graph", str(self.to_runner_api()))
        try:
            result = run(self, *given, **named)
        except BaseException as error:
            note_error(error)
            raise
        note("metrics", str(result.metrics().query()))
        return result

    Pipeline.run = seen_run


def _unpacked(data: bytes) -> bytes:
    with suppress(Exception):
        data = base64.b64decode(data, validate=True)
    for unpack in (bz2.decompress, zlib.decompress):
        with suppress(Exception):
            return unpack(data)
    return data


class Panic(BaseException):
    """As Rust libraries raise it."""


def _quoting(fault: str, kind: type[BaseException], *first: Any) -> Callable[[Any], BaseException]:
    """An error that says all there is of a value, in every way an error can."""

    def make(value: Any) -> BaseException:
        text = repr(value.to_pydict() if hasattr(value, "to_pydict") else value)
        try:
            raise ValueError(f"inner {text}")
        except ValueError as inner:
            error = kind(*first, f"outer {text}")
            error.__cause__ = inner
            if hasattr(error, "add_note"):
                error.add_note(f"note {text}")
            note("injected", f"{fault} was raised")
            return error

    return make


_before: list[tuple[Any, str, Any]] = []


def _put(owner: Any, name: str, value: Any) -> None:
    _before.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _mend() -> None:
    while _before:
        setattr(*_before.pop())


def _fail(owner: Any, name: str, make: Callable[[Any], BaseException]) -> None:
    """Let a method raise what quotes its last argument."""

    def broken(*given: Any, **named: Any) -> Any:
        raise make((given, named) if len(given) < 2 else given[1])

    _put(owner, name, broken)


def _tokenizer(kind: type[BaseException]) -> Callable[[str], None]:
    def put(fault: str) -> None:
        from distilbeam.transforms.distilbert.tokenizer import WordPieceTokenizer

        encode = WordPieceTokenizer.encode
        make = _quoting(fault, kind)

        def broken(self: Any, texts: Any, *given: Any) -> Any:
            if any("poison" in text for text in texts):
                raise make(texts)
            return encode(self, texts, *given)

        _put(WordPieceTokenizer, "encode", broken)

    return put


def _in(module: str, owner: str, name: str, kind: type[BaseException], *first: Any) -> Callable[[str], None]:
    def put(fault: str) -> None:
        found = __import__(module, fromlist=[owner])
        _fail(getattr(found, owner) if owner else found, name, _quoting(fault, kind, *first))

    return put


_T = "distilbeam.transforms."
FAULTS: dict[str, Callable[[str], None]] = {
    "tokenizer error": _tokenizer(TypeError),
    "tokenizer panic": _tokenizer(Panic),
    "tokenizer out of memory": _tokenizer(MemoryError),
    "model": _in(_T + "distilbert.engine", "Engine", "run", RuntimeError),
    "model out of memory": _in(_T + "distilbert.engine", "Engine", "run", MemoryError),
    "step": _in(_T + "workers", "_Worker", "featurize", KeyError),
    "step panic": _in(_T + "workers", "_Worker", "featurize", Panic),
    "step unicode": _in(_T + "workers", "_Worker", "featurize", UnicodeEncodeError, "utf-8", "poison", 0, 1),
    "writer": _in(_T + "features", "SplitWriter", "write", RuntimeError),
    "disk": _in(_T + "features", "SplitWriter", "write", OSError, errno.ENOSPC),
    "bundle": _in(_T + "features", "_WriteSplits", "_abort", RuntimeError),
    "commit": _in(_T + "features", "", "commit", RuntimeError),
    "reader": _in(_T + "documents", "", "read_split", RuntimeError),
    "plan": _in(_T + "output.ledger", "Ledger", "plan", RuntimeError),
}


def main() -> int:
    """Run one command, observed."""
    os.environ["PYTHONFAULTHANDLER"] = "1"
    faulthandler.enable()
    if not os.environ.get("OBSERVE_SITE"):
        install()
    from distilbeam.pipelines import cli, job

    inner = job._run

    def seen(*given: Any, **named: Any) -> Any:
        try:
            return inner(*given, **named)
        except BaseException as error:
            note_error(error)
            raise

    job._run = seen
    code = 0
    for command in "\n".join(sys.argv[1:]).split("\nAND\n"):
        words = command.split("\n")
        if words[0].startswith("fault="):
            fault = words.pop(0).removeprefix("fault=")
            FAULTS[fault](fault)
        try:
            code = cli.main(words)
        except BaseException as error:
            note_error(error)
            code = -1
        _mend()
        note("codes", str(code))
    return code


if __name__ == "__main__":
    sys.exit(main())
