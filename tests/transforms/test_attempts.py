import subprocess
import sys
from pathlib import Path

import pytest

from distilbeam.transforms.output import attempts
from distilbeam.transforms.output.manifest import STAGING


def test_a_split_is_counted_each_time_it_is_begun_and_apart_from_others(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert [attempts.begin(output, "aa") for _ in range(3)] == [1, 2, 3]
    assert attempts.begin(output, "ab") == 1
    assert attempts.begin("memory://attempts-test", "aa") == 1
    assert attempts.begin("memory://attempts-test", "aa") == 2


def test_an_attempt_that_ended_does_not_count(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert [attempts.begin(output, "aa"), attempts.begin(output, "aa")] == [1, 2]
    attempts.end(output, "aa")
    attempts.end(output, "ab")
    assert attempts.begin(output, "aa") == 1


def test_the_note_survives_a_process_that_is_killed_at_once(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from distilbeam.transforms.output import attempts; "
        "attempts.begin(sys.argv[1], 'aa'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    died = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert died.returncode == -9
    assert attempts.begin(str(tmp_path), "aa") == 2


@pytest.mark.parametrize("note", [b"", b"\0\0\0", b"-3", b"1.5", b"NaN", b"9" * 5000, "\u0663".encode(), b"\xff"])
def test_a_note_that_cannot_be_understood_is_one_attempt(tmp_path: Path, note: bytes) -> None:
    path = tmp_path / STAGING / "aa.attempts"
    path.parent.mkdir(parents=True)
    path.write_bytes(note)
    assert attempts.begin(str(tmp_path), "aa") == 2
    assert attempts.begin(str(tmp_path), "aa") == 3
