"""What is shown of a running job."""

import io
import threading
from collections import Counter

import pytest

from distilbeam.pipelines import progress
from distilbeam.pipelines.progress import Planned, Progress, State, duration
from distilbeam.transforms.input.read_settings import ReadSettings
from distilbeam.transforms.input.splits import Part, Split
from distilbeam.transforms.metrics import Live, count, counting, counting_for, named
from distilbeam.transforms.output.ledger import Ledger
from tests.clocks import replace_clock


def splits(*sizes: int) -> list[Split]:
    return [
        Split((Part(f"{number}.txt", "text", size, "v"),), number, len(sizes), b"", size)
        for number, size in enumerate(sizes)
    ]


def test_counts_of_many_threads_add_up() -> None:
    from concurrent.futures import ThreadPoolExecutor

    live = Live()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [live.add(rows=1, tokens=3) for _ in range(500)], range(8)))
    assert live.read() == Counter(rows=4000, tokens=12000)
    live.read()["rows"] = 0
    assert live.read()["rows"] == 4000


def planned(plan: list[Split], *done: int) -> list[tuple[Split, bool]]:
    """Hands a plan through, as a job does."""

    class Known(Ledger):
        def plan(self, settings: ReadSettings) -> list[tuple[Split, bool]]:
            return [(split, split.ordinal in done) for split in plan]

    return Planned(Known("out")).plan(ReadSettings(path=("in",)))


def test_only_what_is_left_is_planned() -> None:
    plan = splits(100, 200, 400)
    with counting() as live:
        assert planned(plan, 1) == [(plan[0], False), (plan[1], True), (plan[2], False)]
    assert live.read() == Counter(planned=1, planned_bytes=500, planned_splits=2, finished_splits=1)
    with counting() as live:
        planned(plan)
    assert live.read()["planned_bytes"] == 700


def test_each_job_has_counts_of_its_own() -> None:
    one, other = Live(), Live()
    with named(one) as first, named(other) as second:
        with counting_for(first):
            count(rows=1)
            with counting_for(second):
                count(rows=20)
            with counting_for("a job of another process"):
                count(rows=300)
        count(rows=4000)
    with counting_for(first):
        count(rows=50000)
    assert (one.read()["rows"], other.read()["rows"]) == (301, 20)


def test_nothing_to_read_is_said() -> None:
    with Progress("none", "embedding") as shown, counting(shown.live):
        covered = Split((Part("1.txt", "", 1, "v"),), 1, 2, b"", 0, record="covered0123-89abcdef")
        planned([*splits(100), covered], 0, 1)
        assert shown.state().words() == ["nothing to read, checking the output"]
        assert shown.live.read()["finished_splits"] == 1


def test_the_time_left_follows_from_the_bytes_that_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    replace_clock(monkeypatch, progress, monotonic=lambda: clock[0])
    with Progress("none", "embedding") as shown, counting(shown.live):
        assert shown.state() == State("starting", 0, 0)
        planned(splits(1000, 3000))
        assert shown.state().phase == "loading the model"
        # A batch of 2,000 bytes and 500 tokens, of which the model has done a tenth.
        count(read_bytes=2000, read_tokens=500, rows=1, tokens=50)
        first = shown.state()
        assert first.done == pytest.approx(200 / 4000)
        assert first.left is None
        clock[0] += 10
        count(rows=19, tokens=450)
        now = shown.state()
        assert (now.rows, now.tokens, now.done) == (20, 500, 0.5)
        assert now.speed == pytest.approx(450 / 10)
        # 45% in 10 seconds.
        assert now.left == pytest.approx(10 * 0.5 / 0.45)
        clock[0] += 3
        later = shown.state()
        assert later.speed == now.speed
        assert later.left == pytest.approx(now.left - 3)


def test_finished_splits_tell_how_much_of_a_file_is_text() -> None:
    with Progress("none", "embedding") as shown, counting(shown.live):
        planned(splits(1000, 3000))
        count(read_bytes=250, read_tokens=50, rows=5, tokens=50)
        assert shown.state().done == pytest.approx(250 / 4000)
        count(finished_bytes=1000)
        assert shown.state().done == pytest.approx(0.25)
        count(read_bytes=250, read_tokens=50, rows=5, tokens=25)
        assert shown.state().done == pytest.approx(0.375)


class Lines(io.StringIO):
    """A stream that one can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self._written = threading.Condition()

    def write(self, text: str) -> int:
        with self._written:
            self._written.notify_all()
            return super().write(text)

    def wait_for(self, end: str) -> None:
        with self._written:
            assert self._written.wait_for(lambda: self.getvalue().endswith(end), 60), self.getvalue()


def test_log_lines_are_plain_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LOG_SECONDS", 0.01)
    stream = Lines()
    with Progress("auto", "embedding", stream) as shown, counting(shown.live):
        stream.wait_for(" embedding: starting\n")
        planned(splits(100))
        count(read_bytes=50, read_tokens=10, rows=1234, tokens=10)
        stream.wait_for(" embedding: 50%, 1,234 rows\n")
    assert "\x1b" not in stream.getvalue()
    assert not shown._thread.is_alive(), "it goes on to write"


def test_none_shows_nothing() -> None:
    stream = io.StringIO()
    with Progress("none", "embedding", stream) as shown, counting(shown.live):
        count(rows=1)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (42.4, "42 s"), (59.6, "1:00"), (187, "3:07"), (8100, "2:15:00")],
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told
