"""What is recovered from the ways in which runners report a failure."""

import errno
import re
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distilbeam.pipelines.failures import commits_now, deaths_noted, explain, frames, recover, told_death
from distilbeam.transforms import errors
from distilbeam.transforms.output.commit import begin, commit
from distilbeam.transforms.storage import conditional, filesystems
from distilbeam.transforms.watchdog import EXIT_CODE
from tests.outputs import MANIFEST, SHARDS, files
from tests.plans import Plan

STEP = " [while running 'Read documents/Plan']"
CLASSES = [getattr(errors, name) for name in errors.__all__]


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def as_text(error: BaseException) -> RuntimeError:
    """How a runner with worker processes reports an error: as text, once as raised and once with the step's name."""
    told = "".join(traceback.format_exception(raised(error)))
    again = "".join(traceback.format_exception(raised(type(error)(f"{error}{STEP}"))))
    return RuntimeError(f"{told}\nDuring handling of the above exception, another exception occurred:\n\n{again}")


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("message", ["the column 'a' is not there; use b.", 'it\'s "odd": [while\n waiting]'])
def test_our_error_comes_back_with_class_and_sentence(kind: type[Exception], message: str) -> None:
    one_line = " ".join(message.split())
    for error in (kind(message), kind(message + STEP), as_text(kind(message)), raised(ValueError("x"), kind(message))):
        found = recover(error)
        assert type(found) is kind
        assert str(found) == one_line


def test_the_outermost_of_chained_errors_wins() -> None:
    inner, outer = errors.InputError("inner"), errors.OutputError("outer")
    assert str(recover(raised(outer, inner))) == "outer"
    assert str(recover(RuntimeError("".join(traceback.format_exception(raised(outer, inner)))))) == "outer"


def test_other_errors_are_told_by_class_and_place_only() -> None:
    for error in (raised(ValueError("SECRET text\nSECRETError: x")), as_text(ValueError("SECRET\nSECRETError: text"))):
        assert recover(error) is None
        assert explain(error) == "ValueError"
        places = frames(error)
        assert any(place.rpartition(":")[0] == __file__ for place in places)
        assert "SECRET" not in " ".join(places)


def test_a_message_cannot_pose_as_the_class() -> None:
    assert explain(RuntimeError("SECRET is all it says")) == "RuntimeError"
    assert explain(KeyError("SECRETError")) == "KeyError"


def test_an_error_that_is_its_own_cause_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert recover(first) is None


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (-9, r"was killed \(SIGKILL\), as systems do where memory runs out; .* `if_exists='resume'`"),
        (137, r"was killed \(SIGKILL\)"),
        (-11, r"a worker has died \(SIGSEGV\); run again"),
        (134, r"a worker has died \(SIGABRT\); run again"),
        (EXIT_CODE, "made no progress for the time of `stall_timeout`; run again .* sets that text aside"),
        (3, r"a worker has died \(code 3\); run again"),
    ],
)
def test_the_death_of_a_worker_is_told_with_its_cure(code: int, told: str) -> None:
    assert re.search(told, told_death(code))


def test_deaths_are_noted_where_beam_raises_them() -> None:
    def die(error: Exception) -> None:
        raise error

    others: list[object] = []
    before = threading.excepthook
    threading.excepthook = others.append
    try:
        with deaths_noted() as codes:
            for error in (RuntimeError("Worker subprocess exited with return code -9"), ValueError("SECRET")):
                thread = threading.Thread(target=die, args=(error,))
                thread.start()
                thread.join()
    finally:
        threading.excepthook = before
    assert codes == [-9]
    assert len(others) == 1


def test_a_full_disk_is_told_with_its_cure() -> None:
    assert "the disk is full; free some space and run again" in explain(OSError(errno.ENOSPC, "SECRET"))
    assert "SECRET" not in explain(OSError(errno.ENOSPC, "SECRET"))


def test_a_commit_under_way_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where an earlier first commit has died, so that what lies in place of the manifest names no output."""
    output, told = str(tmp_path / "out"), []
    move, replace = filesystems.move, conditional.replace

    def die(source: str, target: str) -> None:
        told.append(commits_now(output))
        raise errors.OutputError("killed")

    def note(url: str, data: bytes, version: str) -> bool:
        assert MANIFEST in files(output)
        told.append(commits_now(output))
        return replace(url, data, version)

    assert not commits_now(output)
    monkeypatch.setattr(filesystems, "move", die)
    with pytest.raises(errors.OutputError, match="killed"):
        commit(output, Plan(lines=9, settings={"model": "other"}).write_all(output, SHARDS))
    monkeypatch.setattr(filesystems, "move", move)
    monkeypatch.setattr(conditional, "replace", note)
    base = begin(output, "overwrite")
    commit(output, Plan(lines=15).write_all(output, SHARDS), if_exists="overwrite", base=base)
    assert len(told) > 1
    assert all(told)
    assert not commits_now(output)


def _raised_at(place: str, function: str, error: Exception) -> Exception:
    """The error as if it had come out of a function of a file."""
    scope: dict[str, Any] = {"error": error}
    exec(compile(f"def {function}():\n    raise error", place, "exec"), scope)
    return raised_by(scope[function])


def raised_by(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as caught:
        return caught
    raise AssertionError


RUNNERS = "/lib/apache_beam/runners"
REFUSED = "cannot reach http://me:secret@h:9/j?token=abc\nsecond line"


@pytest.mark.parametrize(
    ("place", "function", "message", "told"),
    [
        (f"{RUNNERS}/portability/portable_runner.py", "run_pipeline", REFUSED, True),
        (f"{RUNNERS}/portability/flink_runner.py", "create_job_service", REFUSED, True),
        (f"{RUNNERS}/dataflow/dataflow_runner.py", "run_pipeline", REFUSED, True),
        (f"{RUNNERS}/portability/portable_runner.py", "wait_until_finish", "a document", False),
        (f"{RUNNERS}/portability/portable_runner.py", "run_pipeline", "x\nTraceback (most recent call last):", False),
        (f"{RUNNERS}/portability/portable_runner.py", "run_pipeline", "a document [while running 'Read']", False),
        (f"{RUNNERS}/portability/fn_api_runner/fn_runner.py", "run_pipeline", "a document", False),
        (f"{RUNNERS}/worker/operations.py", "process", "a document", False),
        ("/lib/distilbeam/transforms/documents.py", "process", "a document", False),
    ],
)
def test_what_a_runner_says_before_it_has_a_job_is_told(place: str, function: str, message: str, told: bool) -> None:
    shown = explain(_raised_at(place, function, RuntimeError(message)))
    assert shown == ("RuntimeError: cannot reach http://***@h:9/j?token=***" if told else "RuntimeError")


def test_a_runner_that_beam_cannot_start_tells_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.portability.job_server import JavaJarJobServer

    def refuse(*_: object) -> None:
        raise RuntimeError("there is no Java here")

    monkeypatch.setattr(JavaJarJobServer, "local_jar", refuse)
    monkeypatch.setattr(JavaJarJobServer, "path_to_beam_jar", refuse)
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FlinkRunner", "--flink_master=localhost:9"]))
    _ = pipeline | beam.Create([None])
    assert explain(raised_by(pipeline.run)) == "RuntimeError: there is no Java here"
