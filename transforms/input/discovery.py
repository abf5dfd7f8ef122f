"""The files of an input: of each path, without what is no data, and of tables those that the log has."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from distilbeam.transforms.storage.filesystems import FileInfo, is_local, match_all, nothing_matches, resolve

from .companions import describe, pass_over
from .tables import read_tables

__all__ = ["covers", "discover", "find_files"]

_LOG = logging.getLogger(__name__)


def find_files(paths: Sequence[str], format: str | None = None) -> list[FileInfo]:
    """The data files of all paths, as ``discover`` has them; one warning names what was passed over.

    Raises:
        InputError: as ``discover``.
    """
    files, passed = discover(paths, format)
    if passed:
        _LOG.warning("%s", describe(passed))
    return files


def discover(paths: Sequence[str], format: str | None = None) -> tuple[list[FileInfo], list[str]]:
    """The data files of all paths, in the order of the paths, and the URLs of files that are passed over.

    A file that a path names is taken as it is. Of what a folder or glob stands for, known companions of data and empty
    files are passed over; the rest must be of one format. In a table only the files that its
    newest version has count.

    Args:
        paths: files, folders or globs.
        format: the format that the user has set.

    Raises:
        InputError: a path matches no data, matches several formats, or a table there cannot be read.
    """
    files: list[FileInfo] = []
    passed: list[str] = []
    for path in paths:
        match = match_all(path)
        if not match.root:
            files += match.files
            continue
        plain, live = read_tables(match, format)
        if not plain and not live:
            raise nothing_matches(path)
        data, others = pass_over(path, plain + live, format)
        files += data
        passed += others
    return files, passed


def covers(path: str, url: str) -> bool:
    """Whether a file, which need not be there, is one that a path stands for: in its folder, or matched by its glob.

    >>> covers("/in", "/in/day=1/a.parquet"), covers("/in/*.jsonl", "/in/a.parquet"), covers("/in", "/inbox/a.parquet")
    (True, False, False)
    """
    if is_local(path):
        path = resolve(path)[1]
    # A glob may match a folder too, which stands for all below it.
    pieces = re.split(r"(\*\*/|\*+|\?|\[[^]/]+\])", path.rstrip("/"))
    translated = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    pattern = "".join(
        (translated.get(piece) or piece.replace("[!", "[^")) if odd else re.escape(piece)
        for odd, piece in ((number % 2, piece) for number, piece in enumerate(pieces))
    )
    return re.fullmatch(f"{pattern}(/.*)?", url) is not None
