"""Keys of JSON objects that no column takes: noticed when lines are read, told with the split."""

from __future__ import annotations

import pyarrow as pa

from distilbeam.transforms.errors import InputError

from .formats.lines import Block
from .formats.survey import MAX_NAMES, unread_keys

__all__ = ["UnreadKeys"]

_MAX_BLOCKS = 16  # of a split that are looked through for names; each costs as much as reading it


class UnreadKeys:
    """The unread keys of one split, as far as they are looked for.

    Args:
        schema: the columns.
        strict: whether such a key is an error.
    """

    def __init__(self, schema: pa.Schema, *, strict: bool) -> None:
        self._schema = schema
        self._strict = strict
        self._names: set[str] = set()
        self._blocks = 0

    @property
    def names(self) -> tuple[str, ...]:
        """The keys, dotted where they are inside of a column; not all of them where there are very many."""
        return tuple(sorted(self._names)[:MAX_NAMES])

    def note(self, source: str, lines: Block) -> bool:
        """Takes note of lines with such keys; gives whether more are worth a look.

        Raises:
            InputError: the settings are strict.
        """
        if self._strict:
            # Keys are data, so their names stay out of messages.
            raise InputError(
                f"objects in {source!r} have keys that are no columns, since the plan had not met them, and the job is "
                "`strict`; give their types with `types`, or list the columns to `keep`"
            )
        self._names |= unread_keys(lines, self._schema)
        self._blocks += 1
        return self._blocks < _MAX_BLOCKS and len(self._names) < MAX_NAMES
