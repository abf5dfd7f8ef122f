"""The encoder in a process of its own: whatever happens, no row gets the features of another one."""

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from distilbeam.transforms import Encoder
from distilbeam.transforms.encoder import EngineSettings
from distilbeam.transforms.errors import DistilbeamError
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.isolated import TEXTS, pack_texts
from distilbeam.transforms.isolation import IsolatedEncoder
from distilbeam.transforms.provenance import MAX_DEATHS, Provenance
from distilbeam.transforms.workers import FeaturizeBatches

MODEL = str(Path(__file__).parents[2] / "examples" / "distilbert-tiny-sst2")
ENGINE = EngineSettings("cpu", "float32", 1)
SPEC = FeatureSpec(("input_ids",))


@pytest.fixture(scope="module")
def truth() -> Encoder:
    return Encoder.load(MODEL, device="cpu", dtype="float32", threads=1)


@pytest.fixture
def encoder() -> Iterator[IsolatedEncoder]:
    encoder = IsolatedEncoder(MODEL, ENGINE, SPEC, 60.0)
    yield encoder
    encoder.close()


def ids(encoder: Encoder | IsolatedEncoder, text: str) -> Any:
    return encoder.outputs(pa.array([text]), SPEC).columns[0].to_pylist()


def process_of(encoder: IsolatedEncoder) -> Any:
    assert encoder._child
    return encoder._child._process


@pytest.mark.parametrize(
    ("error", "loaded"), [(MemoryError, True), pytest.param(KeyboardInterrupt, False, marks=pytest.mark.slow)]
)
def test_a_reply_that_was_not_taken_is_never_that_of_another_row(
    error: type[BaseException], loaded: bool, encoder: IsolatedEncoder, truth: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    if loaded:
        ids(encoder, "warm")
    children: list[Any] = []
    read = os.read

    def failing(pipe: int, size: int) -> bytes:
        if size == 1 << 20 and not children:  # that of replies, and not one that starts a process
            children.append(process_of(encoder))
            raise error
        return read(pipe, size)

    monkeypatch.setattr(os, "read", failing)
    with pytest.raises(error):
        ids(encoder, "good good good good")
    (child,) = children
    assert child.poll() is not None, "the child that owes a reply is ended"
    assert ids(encoder, "bad") == ids(truth, "bad") != ids(truth, "good good good good")
    assert ids(encoder, "a film a film") == ids(truth, "a film a film")


def test_a_reply_to_another_request_is_refused(encoder: IsolatedEncoder) -> None:
    ids(encoder, "warm")
    child = process_of(encoder)
    assert encoder._child
    encoder._child.send(TEXTS, pack_texts(pa.array(["good good good good"])))
    with pytest.raises(DistilbeamError, match="answered request 3 and not 4"):
        ids(encoder, "bad")
    assert child.poll() is not None
    assert encoder._child is None


@pytest.mark.slow
def test_a_process_with_very_many_open_files(encoder: IsolatedEncoder, truth: Encoder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
        while (number := os.open(os.devnull, os.O_RDONLY)) < 1024:
            stack.callback(os.close, number)
        stack.callback(os.close, number)
        assert ids(encoder, "bad") == ids(truth, "bad")
        assert process_of(encoder).stdout.fileno() > 1023, "no lower descriptor was free"
        encoder.close()


def test_a_split_that_has_died_once_costs_nothing_unless_another_has_died_twice() -> None:
    worker = FeaturizeBatches(MODEL, ENGINE, SPEC, 60.0)

    def isolated(split: str, attempt: int) -> bool:
        asked: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            for name in ("encoder", "isolated"):
                called = getattr(worker, name)
                patch.setattr(worker, name, lambda engine, n=name, c=called: asked.append(n) or c(engine))
            batch = Provenance("f", split, text=("text",), attempt=attempt).attach(pa.record_batch({"text": ["a"]}))
            worker.featurize(batch, Provenance.of(batch))
        return asked == ["isolated"]

    assert [isolated("s", attempt) for attempt in (1, 2, 3)] == [False, False, True]
    # A bundle that has a killing row is tried again with all of its splits, and no runner tries for ever.
    assert [isolated("t", attempt) for attempt in (1, 2)] == [False, True]
    worker.teardown()


def test_the_child_lives_until_its_last_user_is_torn_down() -> None:
    users = [FeaturizeBatches(MODEL, ENGINE, SPEC, 60.0) for _ in range(2)]
    batch = Provenance("f", "s", text=("text",), attempt=MAX_DEATHS + 1).attach(pa.record_batch({"text": ["bad"]}))
    for user in users:
        assert user.featurize(batch, Provenance.of(batch))[0].num_rows == 1
    shared = users[0].isolated(ENGINE)
    assert shared is users[1].isolated(ENGINE)
    child = process_of(shared)
    users[0].teardown()
    users[0].teardown()  # harmless
    assert process_of(shared) is child
    assert child.poll() is None
    assert users[1].featurize(batch, Provenance.of(batch))[0].num_rows == 1
    users[1].teardown()
    assert child.poll() is not None
    assert shared._child is None
