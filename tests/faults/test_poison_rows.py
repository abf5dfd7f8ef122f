"""A row that kills or stalls the process costs that row alone, and a bounded number of tries."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from distilbeam.transforms.encoder import EngineSettings
from distilbeam.transforms.errors import DistilbeamError
from distilbeam.transforms.featurization import FeatureSpec
from distilbeam.transforms.isolation import IsolatedEncoder
from tests.faults.jobs import MODEL, Done, Runner, embed
from tests.faults.oracle import Truth, check_output, vectors
from tests.faults.poison import ABORT, EXIT, HANG, PANIC, SEGFAULT, Poison
from tests.faults.stores import Disk
from tests.faults.table import FaultReport

ROWS = 60
pytestmark = pytest.mark.slow


def write(path: Path, bad: dict[int, str]) -> Path:
    """Rows of about 60 bytes, some with a canary."""
    texts = [f"row {row} reads {bad.get(row, 'well')} enough" for row in range(ROWS)]
    path.write_text("".join(json.dumps({"id": f"r{row}", "text": text}) + "\n" for row, text in enumerate(texts)))
    return path


def rows_of(words: int) -> int:
    """How many rows at most were handed over, of which one bad, in so many distinct words."""
    # All rows have "row", "reads" and "enough" in common, the bad one has its canary, the others "well"; and each has
    # its number.
    return max(1, words - 4)


@pytest.fixture(scope="module")
def clean(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Vectors of all rows, the canaries too, from processes that are not poisoned."""
    folder = tmp_path_factory.mktemp("clean")
    done = runner(embed(write(folder / "rows.jsonl", {}), folder / "out"))
    assert done.code == 0, done.said
    store = Disk(folder / "out")
    return vectors(store, [name for name in store.names() if name.endswith(".parquet")])


def until_done(runner: Runner, command: Sequence[str], poison: Poison, most: int) -> list[Done]:
    """Runs a job again and again, as its messages say, until it succeeds."""
    runs: list[Done] = []
    while not runs or runs[-1].code != 0:
        assert len(runs) < most, runs[-1].said
        runs.append(runner([*command, "--if-exists", "resume"], environment=poison.environment, warm=False))
    return runs


def check(folder: Path, bad: dict[int, str], clean: dict[str, object]) -> list[dict[str, object]]:
    """Asserts that just the bad rows are missing; gives their rejects."""
    store = Disk(folder / "out")
    good = {key: vector for key, vector in clean.items() if int(key[1:]) not in bad}
    check_output(store, Truth(good, frozenset(("rows.jsonl", row + 1) for row in bad)))  # type: ignore[arg-type]
    names = [name for name in store.names() if name.startswith("_rejects/")]
    return [reject for name in sorted(names) for reject in store.table(name).to_pylist()]


@pytest.mark.timeout(600)
def test_rows_that_kill_the_process(
    runner: Runner, clean: dict[str, object], tmp_path: Path, fault_report: FaultReport
) -> None:
    bad = {17: SEGFAULT, 40: EXIT}
    poison = Poison(tmp_path / "poison")
    command = embed(write(tmp_path / "rows.jsonl", bad), tmp_path / "out", "--split-bytes", "500")
    runs = until_done(runner, command, poison, most=5)
    assert [run.code for run in runs] == [-11, -11, 3, 3, 0]
    rejects = check(tmp_path, bad, clean)
    assert [(reject["stage"], reject["error"]) for reject in rejects] == [("worker", "WorkerDied")] * 2
    assert "signal 11, SIGSEGV" in str(rejects[0]["reason"])
    assert "exit code 3" in str(rejects[1]["reason"])
    assert not any("canary" in run.said for run in runs)
    for word in bad.values():
        sizes = [size for canary, size in poison.deeds() if canary == word]
        deeds = len(sizes)
        # Two by surprise; then all rows of the piece, at most log2 of them more, and the row alone, twice.
        assert 4 <= deeds <= 2 + 1 + math.ceil(math.log2(rows_of(sizes[2]))) + 1
        assert [rows_of(size) for size in sizes[-2:]] == [1, 1]
        fault_report.add(
            f"row that ends the process ({word.removeprefix('canary')})",
            injected=deeds,
            splits_redone=1,
            extra_passes=deeds - 1,
            seconds=sum(run.seconds for run in runs),
        )


@pytest.mark.timeout(600)
def test_a_row_that_hangs(runner: Runner, clean: dict[str, object], tmp_path: Path, fault_report: FaultReport) -> None:
    bad = {29: HANG}
    poison = Poison(tmp_path / "poison")
    source = write(tmp_path / "rows.jsonl", bad)
    command = embed(source, tmp_path / "out", "--split-bytes", "400", "--stall-timeout", "4")
    runs = until_done(runner, command, poison, most=2)
    assert [run.code for run in runs] == [75, 0]
    assert "no progress for 4 seconds in batch 0 of split" in runs[0].said
    assert "--if-exists resume" in runs[0].said
    (reject,) = check(tmp_path, bad, clean)
    assert (reject["error"], reject["reason"]) == ("StallTimeout", "no progress for 4 seconds on this row alone")
    assert not any("canary" in run.said for run in runs)
    sizes = [size for _, size in poison.deeds()]
    deeds = len(sizes)
    assert 3 <= deeds <= 2 + math.ceil(math.log2(rows_of(sizes[1])))
    assert rows_of(sizes[-1]) == 1
    fault_report.add(
        "row that hangs (stall timeout of 4 s)",
        injected=deeds,
        splits_redone=1,
        extra_passes=deeds - 1,
        seconds=sum(run.seconds for run in runs),
    )


def test_a_row_that_panics_costs_no_run(
    runner: Runner, clean: dict[str, object], tmp_path: Path, fault_report: FaultReport
) -> None:
    bad = {5: PANIC, 6: PANIC, 59: PANIC}
    poison = Poison(tmp_path / "poison")
    command = embed(write(tmp_path / "rows.jsonl", bad), tmp_path / "out", "--split-bytes", "100000")
    (run,) = until_done(runner, command, poison, most=1)
    rejects = check(tmp_path, bad, clean)
    assert [(reject["stage"], reject["error"]) for reject in rejects] == [("tokenize", "Panic")] * 3
    assert "canary" not in run.said + str(rejects)
    deeds = len(poison.deeds())
    assert 3 < deeds <= 1 + 3 * 2 * math.log2(ROWS)
    fault_report.add("panic of the tokenizer", injected=deeds, extra_passes=deeds - 1, seconds=run.seconds)


@pytest.fixture
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[IsolatedEncoder, Poison]:
    poison = Poison(tmp_path / "poison")
    monkeypatch.setenv("PYTHONPATH", str(poison.folder))
    spec = FeatureSpec(("embedding",))
    return IsolatedEncoder(str(MODEL), EngineSettings("cpu", "float32", 1), spec, 30), poison


def test_rows_that_abort_one_after_the_other(isolated: tuple[IsolatedEncoder, Poison]) -> None:
    encoder, poison = isolated
    texts = ["fine", f"an {ABORT}", f"two {SEGFAULT}", "good"]
    outputs = encoder.outputs(pa.array(texts), FeatureSpec(("embedding",)))
    encoder.close()
    assert outputs.rows.tolist() == [0, 3]
    assert {row: failure[:2] for row, failure in outputs.failed.items()} == {
        1: ("worker", "WorkerDied"),
        2: ("worker", "WorkerDied"),
    }
    assert "SIGABRT" in outputs.failed[1][2]
    # All four together; then for each bad row a half, and the row alone, twice.
    assert 2 * 2 <= len(poison.deeds()) <= 1 + 2 * (1 + 2)
    assert poison.deeds()[-1] == (SEGFAULT, 2)


def test_a_model_that_cannot_run_at_all_is_no_bad_row(isolated: tuple[IsolatedEncoder, Poison], tmp_path: Path) -> None:
    encoder, poison = isolated
    with (poison.folder / "sitecustomize.py").open("a") as site:
        site.write("\nPoisoned.encode_batch_fast = lambda *_, **__: os.kill(os.getpid(), signal.SIGSEGV)\n")
    with pytest.raises(DistilbeamError, match="not even on an empty text: the process ended with signal 11"):
        encoder.outputs(pa.array(["fine"]), FeatureSpec(("embedding",)))
    encoder.close()
