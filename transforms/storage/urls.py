"""Paths and URLs as text: which we accept, and how they are put together."""

from __future__ import annotations

import os
import re

from distilbeam.transforms.errors import SettingsError

__all__ = ["EXTRAS", "LOCAL", "check_url", "is_local", "join", "named", "split"]

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "az": "azure", "abfs": "azure", "abfss": "azure"}
# Stores that show a file only once all of it is there. Others, such as hdfs and dbfs, write in place.
_PROTOCOLS = frozenset({"file", "local", "memory", "hf", "oci", "oss", "lakefs", *EXTRAS})
LOCAL = frozenset({"file", "local"})
# container@account, bucket@namespace, repository@revision.
_ACCOUNTS = frozenset({"az", "abfs", "abfss", "hf", "oci", *LOCAL})
# What pre-signed URLs, shared access signatures and OAuth put into a query. A question mark alone is part of a glob.
_SIGNED = re.compile(
    r"[?&;#](x-amz-|x-goog-|awsaccesskeyid=|googleaccessid=|sig=|sv=|sas=|\w*(signature|token|password|passwd|secret|"
    r"credential|api_?key|account_?key|access_?key)\w*=)",
    re.I,
)


def check_url(url: str | os.PathLike[str]) -> str:
    """The path or URL as text, if it is one we accept; looks at nothing but the text.

    Raises:
        SettingsError: the URL is chained, holds credentials, or names an unknown or refused protocol.
    """
    url = os.fspath(url) if isinstance(url, os.PathLike) else url
    if not isinstance(url, str) or not url:
        raise SettingsError(f"a path or URL must be a non-empty text, not {url!r}")
    if url == "-":
        raise SettingsError(
            "'-' stands for standard input or output elsewhere, which distilbeam neither reads nor writes; give a file "
            "or folder, './-' for one of that name"
        )
    if "\0" in url:
        raise SettingsError(f"the path {url!r} holds a NUL character")
    if "::" in url:
        raise SettingsError(f"chained URLs such as {_masked(url)!r} are not supported; name the file itself")
    protocol, authority = split(url)
    # A secret may hold a slash; no bucket's name holds a colon, and few stores take an account before one.
    account = "@" in authority and protocol in _PROTOCOLS - _ACCOUNTS
    if "://" in url and ((":" in authority and "@" in url) or account):
        raise SettingsError(
            f"the URL {_masked(url)!r} holds a password; leave it out and give credentials through the "
            "environment or the fsspec configuration"
        )
    if protocol not in _PROTOCOLS:
        allowed = ", ".join(f"{name}://" for name in sorted(_PROTOCOLS))
        raise SettingsError(f"cannot use {protocol}:// in {_masked(url)!r}; use a local path or one of {allowed}")
    if protocol not in LOCAL and _SIGNED.search(url):
        raise SettingsError(
            f"the URL {_masked(url)!r} goes on with a token or a signature; leave it out and give credentials through "
            "the environment or the fsspec configuration"
        )
    if protocol not in LOCAL and ".." in url.split("/"):
        raise SettingsError(f"the URL {_masked(url)!r} holds '..', which stores understand differently; leave it out")
    return url


def is_local(url: str) -> bool:
    """Whether the path or URL lies on this machine's disk."""
    return split(url)[0] in LOCAL


def join(url: str, *names: str) -> str:
    """The URL of something below a folder."""
    folder = url if url.endswith("://") else url.rstrip("/") + "/"
    return folder + "/".join(name.strip("/") for name in names)


def split(url: str) -> tuple[str, str]:
    """Protocol and authority; a plain path has the protocol ``file``."""
    protocol, separator, rest = url.partition("://")
    if separator:
        return protocol.lower(), rest.partition("/")[0]
    return "file", ""


def named(like: str, path: str) -> str:
    """The URL of a store's inner path, spelled as the URL the user gave."""
    protocol, authority = split(like)
    if protocol in LOCAL:
        return path
    path = path.lstrip("/")
    if "@" in authority:  # abfs://container@account: the inner path holds the container alone
        return f"{protocol}://{authority}/{path.partition('/')[2]}"
    return f"{protocol}://{path}"


def _masked(url: str) -> str:
    """The URL without what may be a secret: a password, which may hold a slash, a query and a fragment."""
    return re.split("[?#]", re.sub(r"://([^/@]*:.*|[^/@]*)@", "://***@", url))[0]
