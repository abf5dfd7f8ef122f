"""Checks of settings that several transforms share."""

from __future__ import annotations

from .errors import SettingsError

__all__ = ["whole_number"]


def whole_number(name: str, value: object, least: int, most: int) -> None:
    """Raises SettingsError unless the setting ``name`` is an int (no bool) from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"{name} must be a whole number from {least} to {most}, not {value!r}")
