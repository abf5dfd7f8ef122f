"""Names of features, and what may be told of the names of columns."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

__all__ = ["FEATURES", "columns_like"]

FEATURES = ("embedding", "label", "score", "scores", "input_ids")
"""What can be asked for; ``token_count`` and ``truncated`` always come along."""


def columns_like(name: str, names: Sequence[str]) -> str:
    """What is told of the columns there are to one who has asked for another: how many, and those of a similar name.

    Not all of their names: those of CSV files and JSON lines are data, and without a header they are a document's.
    """
    similar = difflib.get_close_matches(name.lower(), {each.lower() for each in names}, 3, 0.6)
    found = [each for each in names if each.lower() in similar]
    if found and len(names) == 1:
        return f"its only column is {found[0]!r}"
    if found:
        return f"of its {_columns(len(names))} {', '.join(map(repr, found[:3]))} is named most like it"
    return f"it has {_columns(len(names))}, none of a name like that"


def _columns(count: int) -> str:
    return f"{count:,} column{'' if count == 1 else 's'}"
