"""Jobs killed with SIGKILL, again and again, end with the output of one that was never disturbed."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.faults.jobs import Corpus, Runner, corpus, embed, truth_of
from tests.faults.kills import Scenario, disturbed
from tests.faults.oracle import Truth, check_output, vectors
from tests.faults.stores import Disk, Server, Store
from tests.faults.table import FaultReport

SEEDS = int(os.environ.get("FAULTS_RUNS", "20"))


@pytest.fixture(scope="module")
def scenarios(runner: Runner, tmp_path_factory: pytest.TempPathFactory) -> list[Scenario]:
    """A new output, another one in place of an old one, and an output that grows with its input."""
    folder = tmp_path_factory.mktemp("kill")
    old, new = corpus(1, rows=80), corpus(2, jsonl=1, rows=60, stem="new-")
    both = Corpus({**old.files, **new.files}, old.ids | new.ids, old.rejects | new.rejects)
    few, growing = old.write(folder / "few"), old.write(folder / "growing")

    def run(output: str, *command: str) -> tuple[Disk, float]:
        done = runner(command)
        assert done.code == 0, done.said
        return Disk(folder / output), done.seconds

    def truth(corpus: Corpus, output: Disk) -> Truth:
        found = truth_of(corpus, vectors(output, [name for name in output.names() if name.startswith("features/")]))
        check_output(output, found)
        return found

    def fresh(output: str) -> Sequence[str]:
        return embed(few, output, "--if-exists", "resume")

    def over(output: str) -> Sequence[str]:
        return embed(few, output, "--if-exists", "overwrite")

    def grow(output: str) -> Sequence[str]:
        return embed(growing, output, "--incremental")

    clean, seconds = run("clean", *fresh(str(folder / "clean")))
    small = truth(old, clean)
    other, _ = run("other", *embed(few, folder / "other", "--pooling", "cls", "--max-shard-bytes", "20000"))
    yesterday, _ = run("yesterday", *grow(str(folder / "yesterday")))
    before = {name: yesterday.read(name) for name in yesterday.names()}
    new.write(growing)
    grown, more = run("yesterday", *grow(str(folder / "yesterday")))
    return [
        Scenario("new output", {}, fresh, small, seconds),
        Scenario("overwrite", {name: other.read(name) for name in other.names()}, over, small, seconds),
        Scenario("incremental", before, grow, truth(both, grown), more),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_jobs_end_as_undisturbed_ones(
    seed: int, scenarios: list[Scenario], runner: Runner, server: Server, tmp_path: Path, fault_report: FaultReport
) -> None:
    chance = random.Random(seed)
    scenario = scenarios[seed % len(scenarios)]
    remote = seed // len(scenarios) % 2 == 1
    warm = seed % 10 != 0
    store: Store = server.store(f"kill-{seed}") if remote else Disk(tmp_path / "out")
    outcome = disturbed(
        scenario,
        store,
        runner,
        chance,
        kills=chance.randint(1, 3) if warm else 1,
        environment=server.environment(),
        warm=warm,
    )
    for kill in outcome.kills:
        fault_report.add(f"SIGKILL while {kill.phase}", injected=1, splits_redone=kill.redone, peak_mb=kill.peak_mb)
    fault_report.add(
        f"SIGKILL of a job: {scenario.name}, {'S3' if remote else 'disk'}",
        injected=len(outcome.kills),
        splits_redone=sum(kill.redone for kill in outcome.kills),
        seconds=outcome.seconds,
        note=f"seconds of all runs; an undisturbed one takes {scenario.seconds:.1f}",
    )
