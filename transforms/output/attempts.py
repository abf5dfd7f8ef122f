"""How often work on each split was begun and not ended: what a process that died in the middle leaves behind.

A worker that is killed by one of its rows cannot say so afterwards, so it notes the split before it begins, and takes
the note back once the work has ended, well or with an error.
"""

from __future__ import annotations

from contextlib import suppress

from distilbeam.transforms.errors import DistilbeamError
from distilbeam.transforms.storage import filesystems

from .manifest import STAGING

__all__ = ["begin", "end"]


def begin(output: str, split: str) -> int:
    """Notes durably that work on a split begins; how often it was begun and not ended, this time included.

    The note lies at ``OUT/_distilbeam/staging/{split}.attempts`` and goes with that folder at the commit. One that
    cannot be understood stands for one attempt. Two workers that begin the same split at once may count as one.

    Args:
        output: path or URL of the output folder.
        split: id of the split.

    Raises:
        InputError, OutputError: the note cannot be read or written.
    """
    url = _url(output, split)
    number = _noted(filesystems.read_bytes(url)) + 1 if filesystems.exists(url) else 1
    filesystems.write_bytes(url, b"%d\n" % number)
    return number


def end(output: str, split: str) -> None:
    """Takes the note of a split back, so that the next attempt does not take the split for one that kills its worker.

    Where the store cannot be reached the note stays; the next attempt is then slower, and no less right.
    """
    with suppress(DistilbeamError):
        filesystems.delete(_url(output, split))


def _url(output: str, split: str) -> str:
    return filesystems.join(output, STAGING, f"{split}.attempts")


def _noted(data: bytes) -> int:
    digits = data.strip()
    return int(digits) if digits.isdigit() and len(digits) < 10 else 1
