"""The watchdog, in processes that it really ends."""

import subprocess
import sys
import threading
from collections.abc import Generator

import pytest

from distilbeam.transforms import watchdog as watchdog_module
from distilbeam.transforms.watchdog import EXIT_CODE, Watchdog
from tests.clocks import replace_clock

HEAD = (
    "import logging, threading, time; logging.basicConfig(); from distilbeam.transforms.watchdog import WATCHDOG as w\n"
)


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=60)


def test_work_without_progress_ends_the_process() -> None:
    done = run("with w.watch('batch 3 of split 7', 0.3): time.sleep(30)\nprint('survived')")
    assert (done.returncode, done.stdout) == (EXIT_CODE, "")
    assert "no progress for 0.3 seconds in batch 3 of split 7; ending the process with code 75" in done.stderr
    assert "`if_exists='resume'`" in done.stderr


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


class Clock:
    """A watchdog whose time passes when the test says so, with the works that it would have ended the process for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.ended = 100.0, list[str]()
        self.watchdog = Watchdog()
        self.watchdog._looked = self.now
        replace_clock(monkeypatch, watchdog_module, monotonic=lambda: self.now)
        monkeypatch.setattr(watchdog_module, "_end", lambda work: self.ended.append(work.what))
        monkeypatch.setattr(Watchdog, "_start", lambda self: None)

    def wait(self, seconds: float, interval: float = 1.0) -> None:
        """The watchdog looks as often as it does while so many seconds pass."""
        for _ in range(round(seconds / interval)):
            self.now += interval
            self.watchdog._look(interval)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_work_goes_without_a_beat_just_so_long(clock: Clock) -> None:
    with clock.watchdog.watch("hung", 4):
        clock.wait(4)
        assert clock.ended == []
        clock.wait(1)
        assert clock.ended == ["hung"]


def test_a_process_that_was_stopped_is_given_time(clock: Clock) -> None:
    with clock.watchdog.watch("stopped", 4):
        clock.now += 9  # between two looks that were to be a second apart
        clock.watchdog._look(1)
        clock.wait(4)
        assert clock.ended == []
        clock.wait(1)
        assert clock.ended == ["stopped"]


def test_work_that_beats_or_waits_or_is_over_goes_on(clock: Clock) -> None:
    watchdog = clock.watchdog
    with watchdog.watch("beating", 4):
        for _ in range(5):
            clock.wait(3)
            watchdog.beat()
    with watchdog.watch("waiting", 4):
        with watchdog.paused():
            clock.wait(60)
        clock.wait(4)
    with watchdog.watch("outer", 4):
        clock.wait(3)
        with watchdog.watch("inner", 4):
            clock.wait(3)
        clock.wait(3)
    with watchdog.watch("unbounded", 0):
        clock.wait(60)
    with watchdog.watch("over", 4):
        pass
    clock.wait(60)
    assert clock.ended == []


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


def test_who_is_to_blame_is_told_before_the_process_ends() -> None:
    code = (
        "done = threading.Event()\n"
        "def work():\n"
        "    with w.blaming(lambda: print('split 7', flush=True)), w.watch('outer', 0.3):\n"
        "        inherited = w.inherited()\n"
        "    with w.blaming(lambda: print('not I', flush=True)), w.watch('other', 600):\n"
        "        with inherited(): time.sleep(20)\n"
        "work()\n"
    )
    done = run(code)
    assert done.returncode == EXIT_CODE, done.stderr
    assert done.stdout == "split 7\n"


def test_a_generator_that_is_closed_late_or_elsewhere_takes_no_others_blame_away(clock: Clock) -> None:
    watchdog, blamed = clock.watchdog, list[str]()

    def of_split(name: str) -> Generator[None, None, None]:
        with watchdog.blaming(lambda: blamed.append(name)):
            yield

    def ask() -> None:
        with watchdog.watch("work", 4):
            blame = watchdog._works[threading.get_ident()].blame
            blamed.append("nobody") if blame is None else blame()

    left, going_on = of_split("left"), of_split("going on")
    next(left)
    next(going_on)
    other = threading.Thread(target=left.close)
    other.start()
    other.join()
    ask()
    going_on.close()
    ask()
    assert blamed == ["going on", "nobody"]
