"""Settings in messages, spelled as on the command line."""

from __future__ import annotations

import argparse
import ast
import logging
import re
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ["OptionFormatter", "as_options", "option_names"]

# A word of its own, so that no part of a path or of a name in quotes passes for a setting.
_SETTING = re.compile(r"(?<![^\s(])`([a-z]\w*)(?:=([^`]*))?`(?![^\s).,:;])")


def option_names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """The option that sets each setting, in a parser and in those of its commands."""
    names: dict[str, str] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                names |= option_names(command)
        elif action.option_strings:
            names[action.dest] = action.option_strings[0]
    return names


def as_options(message: str, names: Mapping[str, str]) -> str:
    """A message of ``distilbeam.transforms.errors`` for one who has typed a command.

    Args:
        message: with each setting as ``errors`` says, such as ``set `if_exists='resume'```.
        names: the option of each setting; what has none is left as it is.

    Example:
        >>> as_options("raise `max_rejects`, or set `if_exists='resume'`",
        ...            {"max_rejects": "--max-rejects", "if_exists": "--if-exists"})
        'raise --max-rejects, or set --if-exists resume'
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], found[2]
        if name not in names:
            return found[0]
        return names[name] if value is None else _given(names[name], value)

    return _SETTING.sub(option, message)


class OptionFormatter(logging.Formatter):
    """A formatter of log records that names settings as options."""

    def __init__(self, form: str, times: str, names: Mapping[str, str]) -> None:
        super().__init__(form, times)
        self._names = names

    def format(self, record: logging.LogRecord) -> str:
        return as_options(super().format(record), self._names)


def _given(option: str, literal: str) -> str:
    """An option with the value that is written as a literal of Python."""
    try:
        value = ast.literal_eval(literal)
    except (SyntaxError, ValueError):
        value = literal
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    return f"{option} {_words(value)}"


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(shlex.quote(f"{name}={each}") for name, each in value.items())
    if isinstance(value, list | tuple):
        return " ".join(shlex.quote(str(each)) for each in value)
    return "none" if value is None else shlex.quote(str(value))
