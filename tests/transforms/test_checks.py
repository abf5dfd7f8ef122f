"""A whole number is an int in its range, and nothing that only looks like one."""

from __future__ import annotations

import pytest

from distilbeam.transforms.checks import check_sha256, whole_number
from distilbeam.transforms.errors import SettingsError


@pytest.mark.parametrize("value", [1, 2, 7])
def test_whole_numbers_in_the_range_pass(value: int) -> None:
    whole_number("n", value, 1, 7)


@pytest.mark.parametrize("value", [0, 8, True, 2.0, "2", None, float("nan")])
def test_all_else_is_refused_by_name(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^`n` must be a whole number from 1 to 7, not "):
        whole_number("n", value, 1, 7)


@pytest.mark.parametrize("value", ["0" * 64, "0123456789abcdefABCDEF" + "a" * 42])
def test_digests_are_64_hexadecimal_digits(value: str) -> None:
    check_sha256("d", value)


@pytest.mark.parametrize("value", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 64 + "\n", "sha256:" + "0" * 57, 7, None])
def test_no_other_digest_passes(value: object) -> None:
    with pytest.raises(SettingsError, match=r"^`d` must be 64 hexadecimal digits"):
        check_sha256("d", value)
