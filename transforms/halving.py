"""Finding the rows that break a step, without harm to the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["find_failing"]

F = TypeVar("F")


def find_failing(
    rows: npt.NDArray[np.int64], attempt: Callable[[npt.NDArray[np.int64]], F | None], *, known: bool = False
) -> dict[int, F]:
    """Run a step on rows; where it fails, on their halves, until the rows that fail stand alone.

    One failing row among n costs at most ``2 * log2(n)`` calls besides the first. Where the first half of rows that
    fail together comes through, the second must hold the culprit and is divided at once; but no row is given up that
    has not failed alone.

    Args:
        rows: int64[n], handed on to ``attempt`` in slices, in their order.
        attempt: does the work for some rows and returns None, or returns why it cannot.
        known: whether the rows have failed together already.

    Returns:
        Why each of the failing rows failed.
    """
    failed: dict[int, F] = {}
    if len(rows):
        _come_through(rows, known, attempt, failed)
    return failed


# At the level of the module: a function inside another that calls itself would keep alive all that ``attempt`` holds.
def _come_through(
    part: npt.NDArray[np.int64],
    known: bool,
    attempt: Callable[[npt.NDArray[np.int64]], F | None],
    failed: dict[int, F],
) -> bool:
    if not known or len(part) == 1:
        failure = attempt(part)
        if failure is None:
            return True
        if len(part) == 1:
            failed[int(part[0])] = failure
            return False
    middle = len(part) // 2
    first = _come_through(part[:middle], False, attempt, failed)
    _come_through(part[middle:], first, attempt, failed)
    return False
