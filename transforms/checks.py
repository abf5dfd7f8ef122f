"""Checks of settings that several transforms share."""

from __future__ import annotations

import difflib
import platform
import re
from collections.abc import Iterable
from importlib import import_module

from .errors import SettingsError, UnknownSettingError

__all__ = ["check_keywords", "check_sha256", "check_system", "whole_number"]


def check_keywords(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raises UnknownSettingError for the first given name that is not known to ``function``, such as ``embed()``."""
    known = sorted(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1, 0.6)
            cure = f"did you mean `{close[0]}`?" if close else f"its settings are {', '.join(known)}"
            raise UnknownSettingError(f"{function} has no setting {name!r}; {cure}")


def check_system(what: str) -> None:
    """Raises SettingsError where the system lacks POSIX locks and limits of processes, as Windows does."""
    try:
        for name in ("fcntl", "resource"):
            import_module(name)
    except ImportError:
        raise SettingsError(
            f"{what}, which {platform.system() or 'this system'} does not have; run distilbeam on Linux or macOS, on "
            "Windows within WSL, the Windows Subsystem for Linux"
        ) from None


def whole_number(name: str, value: object, least: int, most: int) -> None:
    """Raises SettingsError unless the setting ``name`` is an int (no bool) from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise SettingsError(f"`{name}` must be a whole number from {least} to {most}, not {value!r}")


def check_sha256(name: str, value: object) -> None:
    """Raises SettingsError unless the setting ``name`` is a SHA-256 in hexadecimal."""
    if not isinstance(value, str) or not re.fullmatch("[0-9A-Fa-f]{64}", value):
        raise SettingsError(
            f"`{name}` must be 64 hexadecimal digits, as sha256sum model.safetensors prints them, not {value!r:.80}"
        )
