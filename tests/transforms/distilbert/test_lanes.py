"""Passes side by side: each once, really at the same time, and none lost to a failure."""

import subprocess
import sys
import threading
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from distilbeam.transforms.batching import micro_batches
from distilbeam.transforms.distilbert.lanes import _Worker, in_lanes, share


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("lanes", [1, 2, 5, 40])
def test_each_item_is_done_once(lanes: int) -> None:
    done: Counter[int] = Counter()
    lock = threading.Lock()

    def work(item: int) -> None:
        with lock:
            done[item] += 1

    items = deque(range(30))
    in_lanes(items, work, lanes, 4)
    assert not items
    assert done == Counter(range(30))


def test_lanes_work_at_the_same_time_on_their_shares_of_the_threads() -> None:
    together = threading.Barrier(3, timeout=60)
    seen: list[tuple[int, bool]] = []

    def work(item: int) -> None:
        together.wait()  # breaks unless three are here at once
        seen.append((torch.get_num_threads(), torch.is_inference_mode_enabled()))

    in_lanes(deque(range(6)), work, 3, 6)
    assert seen == [(2, True)] * 6
    assert torch.get_num_threads() == 6


def test_one_item_has_all_threads_and_the_caller_does_it() -> None:
    torch.set_num_threads(4)
    seen: list[tuple[int, int]] = []
    in_lanes(deque([0]), lambda item: seen.append((threading.get_ident(), torch.get_num_threads())), 4, 4)
    assert seen == [(threading.get_ident(), 4)]


@pytest.mark.parametrize("lanes", [1, 4])
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_fails_is_raised_and_goes_back(lanes: int, kind: type[BaseException]) -> None:
    done: list[int] = []

    def work(item: int) -> None:
        if item in (5, 6):
            raise kind(item)
        done.append(item)

    items = deque(range(100))
    with pytest.raises(kind):
        in_lanes(items, work, lanes, lanes)
    assert sorted([*done, *items]) == list(range(100))
    assert items[0] in (5, 6)
    assert len(done) < 99


def test_what_goes_wrong_around_the_work_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads = torch.set_num_threads

    def broken(threads: int) -> None:
        if threading.current_thread().name.startswith("distilbeam-lane"):
            raise RuntimeError("no threads today")
        set_threads(threads)

    monkeypatch.setattr(torch, "set_num_threads", broken)
    items = deque(range(10))
    with pytest.raises(RuntimeError, match="no threads today"):
        in_lanes(items, lambda item: None, 2, 2)
    assert list(items) == list(range(10))


INTERRUPTED = """
import os, signal, time
from collections import deque
from distilbeam.transforms.distilbert.lanes import in_lanes

def work(item):
    if item == 3:
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)

signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this process was started with
items = deque(range(100))
try:
    in_lanes(items, work, 2, 2)
except KeyboardInterrupt:
    left = len(items)
    time.sleep(1)
    print(left > 0, len(items) == left)
"""
OUTLIVING = """
import threading
from collections import deque
from distilbeam.transforms.distilbert.lanes import in_lanes

def late():
    threading.main_thread().join()
    items = deque(range(10))
    in_lanes(items, lambda item: None, 2, 2)
    print("left", len(items))

threading.Thread(target=late).start()
"""


FORKED = """
import os
from collections import deque
from distilbeam.transforms.distilbert.lanes import in_lanes

def run():
    items = deque(range(10))
    in_lanes(items, lambda item: None, 2, 2)
    return len(items)

run()
child = os.fork()
left = run()
if not child:
    os._exit(left)
print("left", left, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def ends() -> list[str]:
    """What one process says of an interrupt, a fork, and calls from a thread that outlives the main one, in turn."""
    code = "\n".join([INTERRUPTED, FORKED, OUTLIVING])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(("call", "said"), [(0, "True True"), (1, "left 0 0"), (2, "left 0")])
def test_lanes_end_with_the_call(call: int, said: str, ends: list[str]) -> None:
    assert ends[call] == said


def test_threads_are_used_again() -> None:
    def names() -> set[int]:
        seen: set[int] = set()
        together = threading.Barrier(3, timeout=60)

        def work(item: int) -> None:
            together.wait()
            seen.add(threading.get_native_id())  # which, unlike the other, no later thread is given

        in_lanes(deque(range(3)), work, 3, 3)
        return seen

    first = names()
    assert len(first) == 3
    assert names() == first


def test_a_thread_outlives_what_goes_wrong_in_it(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise MemoryError

    worker = _Worker.idle()
    worker.begin(broken)
    worker.wait()
    assert "MemoryError" in caplog.text


@given(
    lengths=st.lists(st.integers(1, 512), max_size=60).map(lambda found: np.array(found, dtype=np.int64)),
    budget=st.integers(1, 4096),
    lanes=st.integers(1, 8),
)
def test_shares_are_within_the_budget(lengths: np.ndarray, budget: int, lanes: int) -> None:
    found = share(lengths, budget, lanes)
    assert 1 <= found <= budget
    assert found >= min(budget, 256)


def test_a_little_work_is_shared_by_all_lanes() -> None:
    short = np.full(256, 16, dtype=np.int64)
    for lanes in (2, 4, 8):
        parts = list(micro_batches(short, share(short, 4096, lanes)))
        assert len(parts) == lanes
        assert {int(short[part].sum()) for part in parts} == {4096 // lanes}
    assert share(short[:4], 4096, 8) == 256, "what takes no time stays together"
    assert share(np.full(100_000, 16), 1024, 2) == 1024
    assert share(short, 8192, 2, least=5000) == 5000, "nor what is not worth it elsewhere"
