"""The watchdog, in processes that it really ends."""

import subprocess
import sys
import threading

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


_OWN_WORK = """
def busy():
    with w.watch('busy', 20):
        while True: w.beat(); time.sleep(0.01)
threading.Thread(target=busy, daemon=True).start()
with w.watch('hung', 0.5): time.sleep(30)
"""
_PART_OF_THE_WORK = """
def hang(watch):
    with watch(): time.sleep(30)
def busy(watch):
    with watch():
        while True: w.beat(); time.sleep(0.01)
with w.watch('the work', 0.5):
    parts = [threading.Thread(target=part, args=(w.inherited(),), daemon=True) for part in (hang, busy)]
    with w.paused():
        for part in parts: part.start()
        for part in parts: part.join()
"""


@pytest.mark.parametrize(("code", "named"), [(_OWN_WORK, "hung"), (_PART_OF_THE_WORK, "the work")])
def test_a_thread_that_hangs_is_seen_while_others_progress(code: str, named: str) -> None:
    done = run(code)
    assert done.returncode == EXIT_CODE
    assert f"in {named};" in done.stderr


def test_no_part_of_work_that_is_not_watched_is_watched() -> None:
    done = run("with w.inherited()(): time.sleep(0.5)\nprint(w._works)")
    assert (done.returncode, done.stdout) == (0, "{}\n"), done.stderr


@pytest.mark.slow
def test_a_process_that_was_stopped_is_given_time() -> None:
    code = (
        "import os, signal, subprocess, sys\n"
        "with w.watch('stopped', 4):\n"
        "    stop = f'sleep 0.3; kill -STOP {os.getpid()}; sleep 9; kill -CONT {os.getpid()}'\n"
        "    w.beat(); subprocess.Popen(['sh', '-c', stop])\n"
        "    for _ in range(20): time.sleep(0.1); w.beat()\n"
        "print('survived')"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_work_that_beats_or_waits_or_is_over_goes_on() -> None:
    # All at once, and each for longer than the limit, which leaves a slow machine seconds for each beat.
    code = (
        "def beating():\n"
        "    with w.watch('beating', 4):\n"
        "        for _ in range(60): time.sleep(0.1); w.beat()\n"
        "def waiting():\n"
        "    with w.watch('waiting', 4), w.paused(): time.sleep(6)\n"
        "def nested():\n"
        "    with w.watch('outer', 4):\n"
        "        time.sleep(2)\n"
        "        with w.watch('inner', 4): time.sleep(2)\n"
        "        time.sleep(2)\n"
        "def unbounded():\n"
        "    with w.watch('unbounded', 0): time.sleep(6)\n"
        "def over():\n"
        "    with w.watch('over', 4): pass\n"
        "    time.sleep(6)\n"
        "threads = [threading.Thread(target=work) for work in (beating, waiting, nested, unbounded, over)]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "print('survived')"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_works_that_begin_while_the_watchdog_looks_do_not_end_it() -> None:
    # To compare works by their values would run this, in the middle of looking for the one that hangs.
    code = (
        "class What(str):\n"
        "    def __eq__(self, other):\n"
        "        w._works[len(w._works)] = w._works[ident]\n"
        "        return False\n"
        "    __hash__ = str.__hash__\n"
        "def other():\n"
        "    global ident\n"
        "    ident = threading.get_ident()\n"
        "    with w.watch(What('other'), 600): ready.set(); time.sleep(60)\n"
        "ready = threading.Event()\n"
        "threading.Thread(target=other, daemon=True).start()\n"
        "ready.wait()\n"
        "with w.watch('hung', 0.3): time.sleep(20)\n"
    )
    done = run(code)
    assert done.returncode == EXIT_CODE, done.stderr
    assert "in hung;" in done.stderr


def test_beats_are_told_to_a_listener_from_every_thread() -> None:
    watchdog, heard = Watchdog(), []
    watchdog.listen(lambda: heard.append(threading.current_thread().name))
    watchdog.beat()
    thread = threading.Thread(target=watchdog.beat, name="other")
    thread.start()
    thread.join()
    assert heard == [threading.current_thread().name, "other"]


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
