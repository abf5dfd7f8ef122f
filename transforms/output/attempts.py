"""How often work on each split was begun: what a process that died in the middle leaves to know about it.

A worker that is killed by one of its rows cannot say so afterwards, so it notes the split before it begins.
"""

from __future__ import annotations

from distilbeam.transforms.storage import filesystems

from .manifest import STAGING

__all__ = ["begin"]


def begin(output: str, split: str) -> int:
    """Notes durably that work on a split begins; how often it was begun, this time included.

    The note lies at ``OUT/_distilbeam/staging/{split}.attempts`` and goes with that folder at the commit. One that
    cannot be understood stands for one attempt. Two workers that begin the same split at once may count as one.

    Args:
        output: path or URL of the output folder.
        split: id of the split.

    Raises:
        InputError, OutputError: the note cannot be read or written.
    """
    url = filesystems.join(output, STAGING, f"{split}.attempts")
    number = _noted(filesystems.read_bytes(url)) + 1 if filesystems.exists(url) else 1
    filesystems.write_bytes(url, b"%d\n" % number)
    return number


def _noted(data: bytes) -> int:
    digits = data.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 else 1
