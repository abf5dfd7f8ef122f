"""Disks that fail: full, out of inodes, read-only, or with a limit on the size of a file."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.jobs import Done, Runner, corpus, embed, truth_of
from tests.faults.oracle import Truth, check_moment, check_output, vectors
from tests.faults.stores import Disk
from tests.faults.table import FaultReport
from tests.faults.test_stores import check_failure

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk or become another user")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(3, rows=100).write(tmp_path_factory.mktemp("disks") / "in")


@pytest.fixture(scope="module")
def truth(source: Path, runner: Runner) -> Truth:
    output = Disk(source.parent / "clean")
    done = runner(embed(source, output.path))
    assert done.code == 0, done.said
    found = truth_of(
        corpus(3, rows=100), vectors(output, [name for name in output.names() if name.startswith("features/")])
    )
    check_output(output, found)
    return found


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with the options given, such as ``size=64k``."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if made.returncode:
            pytest.skip(f"a small disk cannot be mounted here: {made.stderr.decode().strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize(("what", "share"), [("bytes", 0.05), ("bytes", 0.5), ("bytes", 0.9), ("inodes", 0.5)])
def test_a_full_disk(
    what: str,
    share: float,
    small_disk: Callable[[str], Path],
    source: Path,
    truth: Truth,
    runner: Runner,
    fault_report: FaultReport,
) -> None:
    """The disk holds a share of the output; the job goes on once there is room."""
    clean = Disk(source.parent / "clean")
    pages = sum(-(-len(clean.read(name)) // 4096) for name in clean.names())
    inodes = len(clean.names())
    room = {"bytes": f"size={int(pages * share) * 4}k", "inodes": f"size=64m,nr_inodes={int(inodes * share)}"}
    disk = small_disk(room[what])
    output = Disk(disk / "out")
    command = embed(source, output.path, "--if-exists", "resume")
    done = runner(command)
    check_failure(done)
    assert "No space left" in done.said or "full" in done.said, done.said
    check_moment(output)
    subprocess.run(["mount", "-o", "remount,size=64m,nr_inodes=10k", str(disk)], check=True)
    again = runner(command)
    assert again.code == 0, again.said
    check_output(output, truth)
    fault_report.add(
        f"disk out of {what}", injected=1, seconds=done.seconds, note="a second job goes on with more room"
    )


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1_000, 12_000])
def test_a_limit_on_file_sizes(
    limit: int, source: Path, truth: Truth, runner: Runner, tmp_path: Path, fault_report: FaultReport
) -> None:
    output = Disk(tmp_path / "out")
    command = embed(source, output.path, "--if-exists", "resume")
    done = runner(command, file_size=limit)
    check_failure(done)
    assert "File too large" in done.said, done.said
    check_moment(output)
    again = runner(command)
    assert again.code == 0, again.said
    check_output(output, truth)
    fault_report.add("RLIMIT_FSIZE", injected=1, seconds=done.seconds)


@needs_root
@pytest.mark.slow
def test_a_read_only_folder(
    small_disk: Callable[[str], Path], source: Path, runner: Runner, fault_report: FaultReport
) -> None:
    disk = small_disk("size=1m,ro")
    done = runner(embed(source, disk / "out"))
    check_failure(done)
    assert "Read-only file system" in done.said, done.said
    fault_report.add("read-only disk", injected=1, seconds=done.seconds)


@needs_root
@pytest.mark.slow
def test_folders_that_may_not_be_read_are_not_passed_over(
    source: Path, runner: Runner, tmp_path: Path, fault_report: FaultReport
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(source, folder / "open")
    shutil.copytree(source, folder / "closed")
    (folder / "closed").chmod(0)
    output = tmp_path / "out"
    output.mkdir()
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == os.geteuid() and path.is_relative_to("/tmp") and path != Path("/tmp"):
            path.chmod(0o755)
    output.chmod(0o777)
    done: Done = runner(embed(folder, output), user=NOBODY)
    check_failure(done)
    assert "ermission" in done.said, done.said
    assert not list(output.glob("features/*.parquet"))
    fault_report.add("an input folder may not be read", injected=1, seconds=done.seconds)
