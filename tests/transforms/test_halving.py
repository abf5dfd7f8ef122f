"""The search for failing rows, against all their positions: who is found, and how many calls that costs."""

import math

import numpy as np
import pytest

from distilbeam.transforms.halving import find_failing


def search(count: int, bad: set[int], *, known: bool = False) -> tuple[dict[int, str], set[int], int]:
    """What was found, the rows that came through, and the number of calls."""
    done: set[int] = set()
    calls = 0

    def attempt(rows: np.ndarray) -> str | None:
        nonlocal calls
        calls += 1
        found = bad & set(rows.tolist())
        if found:
            return f"row {min(found)}"
        done.update(rows.tolist())
        return None

    return find_failing(np.arange(count), attempt, known=known), done, calls


@pytest.mark.parametrize("count", [*range(1, 34), 64, 100, 127, 128, 129])
def test_one_bad_row_costs_at_most_two_log_n_extra_calls(count: int) -> None:
    for bad in range(count):
        failed, done, calls = search(count, {bad})
        assert failed == {bad: f"row {bad}"}
        assert done == set(range(count)) - {bad}
        assert calls - 1 <= 2 * math.log2(count)


@pytest.mark.parametrize("count", [2, 3, 10, 64, 100])
def test_k_bad_rows_cost_at_most_k_times_as_much(count: int) -> None:
    random = np.random.default_rng(count)
    for _ in range(200):
        bad = set(random.choice(count, random.integers(2, count + 1), replace=False).tolist())
        failed, done, calls = search(count, bad)
        assert set(failed) == bad
        assert done == set(range(count)) - bad
        assert calls - 1 <= len(bad) * 2 * math.log2(count)


def test_good_rows_are_tried_once() -> None:
    assert search(100, set()) == ({}, set(range(100)), 1)
    assert search(0, set()) == ({}, set(), 0)


def test_no_row_is_given_up_that_did_not_fail_alone() -> None:
    """Rows that fail only together, or only once, all come through."""
    done: list[int] = []

    def attempt(rows: np.ndarray) -> str | None:
        if len(rows) > 3:
            return "too many"
        done.extend(rows.tolist())
        return None

    assert find_failing(np.arange(50), attempt) == {}
    assert sorted(done) == list(range(50))
    assert search(1, {0}, known=True)[0] == {0: "row 0"}
    assert search(8, {7}, known=True)[2] <= 6
