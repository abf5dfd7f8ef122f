"""What an error may say where it leaves us: nothing of a document, and nothing that opens a store."""

from __future__ import annotations

import errno
import functools
import inspect
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import DistilbeamError

__all__ = ["cause", "discreet", "lacks_credentials", "masked"]

F = TypeVar("F", bound=Callable[..., Any])

_FOLDER = Path(__file__).resolve().parent
# By name, so that no driver is imported that is not in use.
_NO_CREDENTIALS = frozenset(
    {
        *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"),
        *("UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError"),
        *("ClientAuthenticationError", "CredentialUnavailableError"),
    }
)
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Values in the query of a URL, where signatures and tokens stand, and what stands before the @ of an authority.
_QUERY = re.compile(r"([?&;][\w.~-]+=)[^\s&;'\"<>()\[\]{}]+")
_AUTHORITY = re.compile(r"(?<=://)[^\s/@'\"]*@")


def masked(text: str) -> str:
    """A message of a store's driver without what may open the store: passwords, signatures and tokens in URLs."""
    return _AUTHORITY.sub("***@", _QUERY.sub(r"\1***", text))


def lacks_credentials(error: BaseException) -> bool:
    """Whether a store's driver has found no credentials, or none that hold."""
    return any(kind.__name__ in _NO_CREDENTIALS for kind in type(error).__mro__)


def cause(error: BaseException) -> str:
    """What is told of an error of a disk or of a store's driver, with the cure where there is one."""
    name = type(error).__name__
    if lacks_credentials(error):
        return (
            f"no valid credentials for it were found ({name}); give them as its driver expects them, for s3:// by "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile or a role, on the workers too"
        )
    if isinstance(error, OSError) and error.errno in _FULL:
        return "the disk is full; free some space and run again with `if_exists='resume'`, which keeps finished work"
    return f"{name}: {masked(' '.join(str(error).split()))}"


def discreet(method: F) -> F:
    """A method of a DoFn out of which nothing comes that may quote a document.

    Our own errors, whose messages do not, leave without those they were raised from; of all others only class and
    place are told. Runners log what leaves a DoFn, with all that it was raised from.
    """
    if inspect.isgeneratorfunction(method):

        @functools.wraps(method)
        def generator(*args: Any, **named: Any) -> Iterator[Any]:
            try:
                yield from method(*args, **named)
                return
            except (GeneratorExit, KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:  # a panic of a Rust library is no Exception
                told = _told(error)
            # Here, since an error raised inside of the handler would have the other one for its context.
            raise told

        return cast(F, generator)

    @functools.wraps(method)
    def function(*args: Any, **named: Any) -> Any:
        try:
            return method(*args, **named)
        except (GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            told = _told(error)
        raise told

    return cast(F, function)


def _told(error: BaseException) -> DistilbeamError:
    if isinstance(error, DistilbeamError):
        error.__cause__ = error.__context__ = None
        if hasattr(error, "__notes__"):
            del error.__notes__
        return error
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno:
        name = f"{name} ({errno.errorcode.get(error.errno, error.errno)})"
    told = DistilbeamError(f"{name} at {_place(error)}; its message is kept back, since it may quote a document")
    return told.with_traceback(error.__traceback__)


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of ours."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _FOLDER in Path(frame.filename).resolve().parents] or frames
    if not ours:
        return "an unknown place"
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
