"""A whole number is an int in its range, and nothing that only looks like one."""

from __future__ import annotations

import pytest

from distilbeam.transforms.checks import whole_number
from distilbeam.transforms.errors import SettingsError


@pytest.mark.parametrize("value", [1, 2, 7])
def test_whole_numbers_in_the_range_pass(value: int) -> None:
    whole_number("n", value, 1, 7)


@pytest.mark.parametrize("value", [0, 8, True, 2.0, "2", None, float("nan")])
def test_all_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^n must be a whole number from 1 to 7, not "):
        whole_number("n", value, 1, 7)
