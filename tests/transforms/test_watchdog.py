"""The watchdog, in processes that it really ends."""

import subprocess
import sys
import threading
import time

import pytest

from distilbeam.transforms.watchdog import EXIT_CODE, Watchdog

HEAD = (
    "import logging, threading, time; logging.basicConfig(); from distilbeam.transforms.watchdog import WATCHDOG as w\n"
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60)


def test_work_without_progress_ends_the_process() -> None:
    done = run("with w.watch('batch 3 of split 7', 0.3): time.sleep(30)\nprint('survived')")
    assert (done.returncode, done.stdout) == (EXIT_CODE, "")
    assert "no progress for 0.3 seconds in batch 3 of split 7; ending the process with code 75" in done.stderr
    assert "--if-exists resume" in done.stderr


def test_a_thread_that_hangs_is_seen_while_others_progress() -> None:
    code = (
        "def busy():\n"
        "    with w.watch('busy', 0.5):\n"
        "        while True: w.beat(); time.sleep(0.01)\n"
        "threading.Thread(target=busy, daemon=True).start()\n"
        "with w.watch('hung', 0.5): time.sleep(30)\n"
    )
    done = run(code)
    assert done.returncode == EXIT_CODE
    assert "in hung;" in done.stderr


@pytest.mark.slow
def test_a_process_that_was_stopped_is_given_time() -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "with w.watch('stopped', 2):\n"
        "    stop = f'sleep 0.3; kill -STOP {os.getpid()}; sleep 9; kill -CONT {os.getpid()}'\n"
        "    w.beat(); subprocess.Popen(['sh', '-c', stop])\n"
        "    for _ in range(20): time.sleep(0.1); w.beat()\n"
        "print('survived')"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_work_that_beats_or_waits_or_is_over_goes_on() -> None:
    code = (
        "with w.watch('beating', 0.4):\n"
        "    for _ in range(12): time.sleep(0.1); w.beat()\n"
        "    with w.paused(): time.sleep(1)\n"
        "    with w.watch('inner', 0.4): time.sleep(0.1)\n"
        "    time.sleep(0.2)\n"
        "with w.watch('unbounded', 0): time.sleep(1)\n"
        "time.sleep(1); w.beat(); print('survived')"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_beats_are_told_to_a_listener_from_every_thread() -> None:
    watchdog, heard = Watchdog(), []
    watchdog.listen(lambda: heard.append(threading.current_thread().name))
    watchdog.beat()
    thread = threading.Thread(target=watchdog.beat, name="other")
    thread.start()
    thread.join()
    assert heard == [threading.current_thread().name, "other"]


def test_a_beat_costs_next_to_nothing() -> None:
    watchdog = Watchdog()
    with watchdog.watch("work", 600):
        start = time.process_time()
        for _ in range(10_000):
            watchdog.beat()
        assert time.process_time() - start < 0.5


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_is_watched_after_the_block(fails: bool) -> None:
    watchdog = Watchdog()
    try:
        with watchdog.watch("work", 600):
            assert watchdog._works
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert not watchdog._works
