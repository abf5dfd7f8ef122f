"""Files that lie beside data and are none, and folders that hold data of several formats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from distilbeam.transforms.errors import InputError
from distilbeam.transforms.storage.filesystems import FileInfo

from .formats.kinds import COMPRESSIONS, detect, detect_file

__all__ = ["describe", "is_companion", "pass_over"]

_SHOWN = 5
# What people, tools and stores leave beside data, by the name in lower case. Files whose name begins with "_" or "."
# are hidden and not seen at all.
_PAPERS = re.compile(
    r"(readme|licen[cs]e|copying|changelog|requirements|checksums?|(md5|sha1|sha256|sha512)sums?)([._-].*)?|"
    r"notice|changes|history|citation|authors|contributors|contributing|code_of_conduct|codeowners|security|datasheet|"
    r"data_?card|makefile|dockerfile|version|success"
)
_COMPANION = re.compile(
    r"dataset_infos?\.json|dataset_dict\.json|croissant.*\.json|datapackage\.json|dataset-metadata\.json|"
    r"package-lock\.json|.*\.(metadata|schema)\.json|thumbs\.db|ehthumbs\.db|desktop\.ini|.*_\$folder\$|.*~|"
    # marks, checksums, signatures and logs of whoever wrote the data
    r".*\.(success|done|ok|ctl|lock|pid|crc|md5|md5sum|sha1|sha256|sha256sum|sha512|asc|sig|torrent|log|log\.gz|err|"
    # files on their way, and those of before
    r"tmp|temp|partial|filepart|crdownload|opdownload|aria2|inprogress|uploading|incomplete|"
    r"swp|orig|bak|old|backup|lnk|"
    # texts on the data, their pictures, code and settings
    r"md|markdown|rst|adoc|html|htm|css|pdf|bib|tex|png|jpg|jpeg|gif|svg|webp|ico|avsc|py|pyc|ipynb|r|sh|sql|js|"
    r"yaml|yml|toml|ini|cfg|cff|conf)"
)
# Of a file of data that is still on its way, and where its rows lie; alone such an ending may be that of data.
_OF_DATA = re.compile(
    r".*\.(parquet|pq|parq|jsonl|ndjson|jl|json|csv|tsv|txt|arrow|arrows|feather|ipc|avro)"
    r"(\.(gz|gzip|bgz|zst|zstd|bz2|xz))?\.(part|download|idx|index)"
)
_WORDS = (
    r"readme|changelog|citation|config|description|features|index|info|labels|licen[cs]e|manifest|meta|"
    r"metadata|package|provenance|schema|splits|state|statistics|stats|summary|tokenizer|version|vocab"
)
# These tell of data where data lie beside them; alone they may be documents.
_BESIDE_JSON = re.compile(
    rf"(({_WORDS})|(dataset|data|export|generation|load|model|run|special_tokens|tokenizer)[_-]({_WORDS}|map))\.json"
)
# Texts may have any name among texts, so these tell of data only where those have another format.
_BESIDE_TEXT = re.compile(
    rf"({_WORDS}|log|logs|errors?|classes|codebook|data_?dictionary|notes?|files?|filelist|file_list|history|changes|"
    r"notice|copying|terms|authors|contributors|security|todo|about|sources?)(\.txt)?"
)


def is_companion(name: str) -> bool:
    """Whether a file of this name (or glob of such names) is known to be no data.

    >>> is_companion("README.md"), is_companion("day=1_$folder$"), is_companion("reviews.parquet")
    (True, True, False)
    """
    name = name.lower()
    if _PAPERS.fullmatch(name) and _format(name) in (None, "text"):
        return True
    return _COMPANION.fullmatch(name) is not None or _OF_DATA.fullmatch(name) is not None


def pass_over(pattern: str, files: Sequence[FileInfo], format: str | None) -> tuple[list[FileInfo], list[str]]:
    """The data among the files that a folder or glob stands for, all of one format, and the URLs of the others.

    Known companions are no data, and neither are files of 0 bytes beside others. A glob that spells a companion's name,
    such as ``*.md``, wants it. Files that end in ``.json`` often only tell of those that end in ``.jsonl``, so the two
    count as two formats unless the glob spells both, as ``*.json*`` does, or the format is given.

    Args:
        pattern: the folder or glob.
        files: what it stands for.
        format: the format that the user has set, which takes only its own files out of a mixed folder.

    Raises:
        InputError: there is nothing but companions, the format of a file cannot be told, or there are several.
    """
    data = [info for info in files if not is_companion(_name(info.url)) or _spelled(pattern, _name(info.url))]
    if not data and format is not None:
        data = list(files)  # whoever names the format means them
    if not data and files:
        example = files[0].url
        raise InputError(
            f"{pattern!r} holds nothing but files that usually lie beside data, such as {example!r}; to read them as "
            f"documents name them, or give a glob that spells their ending, and set `format` to one of the formats"
        )
    if not any(info.url.endswith(f"/{_name(pattern)}") for info in data):  # as ``**/info.json`` spells one
        data = _without_beside(data, format)
    data = [info for info in data if info.size] or data
    data = _of_one_format(pattern, data, format)
    kept = {info.url for info in data}
    return data, [info.url for info in files if info.url not in kept]


def _name(url: str) -> str:
    return url.rpartition("/")[2]


def _spelled(pattern: str, name: str) -> bool:
    """Whether the last part of a glob spells the name of a companion; that of a folder names no file in it."""
    last = _name(pattern)
    return re.search(r"[*?\[]", last) is not None and is_companion(last) and fnmatchcase(name, last)


def describe(passed: Sequence[str]) -> str:
    """A sentence on the files that were passed over.

    >>> describe(["in/README.md", "in/a.crc"])
    "passed over 2 files that are no data or hold none: 'in/README.md', 'in/a.crc'; name one to read it"
    """
    shown = ", ".join(map(repr, passed[:_SHOWN])) + (
        f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
    )
    files = "1 file that is no data or holds" if len(passed) == 1 else f"{len(passed)} files that are no data or hold"
    return f"passed over {files} none: {shown}; name one to read it"


def _of_one_format(pattern: str, data: Sequence[FileInfo], format: str | None) -> list[FileInfo]:
    by_format: dict[str | None, list[FileInfo]] = {}
    for info in data:
        by_format.setdefault(_format(info.url), []).append(info)
    if format is not None:
        # The user's word goes for files whose name tells nothing, and for all of them where no name tells this format.
        if format not in by_format:
            return list(data)
        return [info for info in data if _format(info.url) in (format, None)]
    if unknown := by_format.get(None):
        try:
            told, _ = detect_file(unknown[0].url)  # what lies in one; each is looked at when the plan is made
            by_format.setdefault(told, []).extend(by_format.pop(None))
        except InputError as error:
            raise InputError(
                f"{error}; to pass over files that are no data give a glob of those that are, such as "
                f"{_example(pattern, data)!r}"
            ) from None
    if len(by_format) > 1:
        found = " and ".join(f"{name} ({infos[0].url!r})" for name, infos in sorted(_named(by_format)))
        raise InputError(
            f"{pattern!r} holds files of several formats: {found}; set `format` to one of them, which passes over the "
            f"others, or give a glob for each, such as {_example(pattern, data)!r}"
        )
    if ".json" not in pattern.rpartition("/")[2]:
        _check_spelling(pattern, data)
    return list(data)


def _check_spelling(pattern: str, data: Sequence[FileInfo]) -> None:
    """Raises InputError where files in ``.json`` lie beside JSON lines of another name."""
    lines = [info for info in data if _format(info.url) == "jsonl"]
    spelled = {_ending(info.url).partition(".")[0] == "json": info for info in lines}
    if len(spelled) > 1:
        raise InputError(
            f"{pattern!r} holds files that end in .json ({spelled[True].url!r}) beside others of JSON lines "
            f"({spelled[False].url!r}), of which they may only tell; set `format` to 'jsonl' to read both, or give a "
            f"glob for those that are data, such as {_example(pattern, [spelled[False]])!r}"
        )


def _is_beside(name: str) -> bool:
    return bool(_BESIDE_JSON.fullmatch(name.lower()) or _BESIDE_TEXT.fullmatch(name.lower()))


def _without_beside(data: list[FileInfo], format: str | None) -> list[FileInfo]:
    """The files without those that only tell of the others, if there are others of the format."""
    others = {info.url: _format(info.url) for info in data if not _is_beside(info.url.rpartition("/")[2])}
    formats = {found for found in others.values() if format in (None, found) or found is None}
    if not formats:
        return data
    texts = formats <= {"text", None}

    def is_data(info: FileInfo) -> bool:
        return info.url in others or (texts and _BESIDE_TEXT.fullmatch(info.url.rpartition("/")[2].lower()) is not None)

    return [info for info in data if is_data(info)]


def _named(by_format: dict[str | None, list[FileInfo]]) -> Iterable[tuple[str, list[FileInfo]]]:
    return ((str(name), infos) for name, infos in by_format.items())


def _format(url: str) -> str | None:
    """The format that the name of a file tells, if it tells one."""
    found = _format_and_packing(url)
    return None if found is None else found[0]


def _format_and_packing(url: str) -> tuple[str, str | None] | None:
    try:
        return detect(url)
    except InputError:
        return None


def _example(pattern: str, data: Sequence[FileInfo]) -> str:
    """A glob for the files of the format that has most bytes."""
    sizes: dict[str, int] = {}
    for info in data:
        if _format(info.url) is not None:
            ending = _ending(info.url)
            sizes[ending] = sizes.get(ending, 0) + info.size
    ending = max(sizes, key=lambda name: sizes[name]) if sizes else "parquet"
    literal = re.split(r"[*?\[]", pattern)[0]
    folder = pattern if literal == pattern else literal.rpartition("/")[0]
    return f"{folder.rstrip('/')}/**/*.{ending}"


def _ending(url: str) -> str:
    """What tells the format in the name of a file, with that of its compression: ``jsonl.gz``."""
    pieces = url.rpartition("/")[2].lower().split(".")
    return ".".join(pieces[-2 if len(pieces) > 2 and f".{pieces[-1]}" in COMPRESSIONS else -1 :])
