"""What is run as a command, and the same as plain functions.

    >>> from distilbeam.pipelines import embed
    >>> embed("./minilm", input="news.parquet", text=["title", "body"], output="vectors")  # doctest: +SKIP

Each function does what the command of its name does, and raises the errors of ``distilbeam.transforms.errors`` where
the command prints a sentence.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .inspection import Inspection, inspect
    from .job import Preview, Summary, classify, embed, featurize, run, tokenize

__all__ = ["Inspection", "Preview", "Summary", "classify", "embed", "featurize", "inspect", "run", "tokenize"]


def __getattr__(name: str) -> Any:
    # Beam takes seconds to import, which `distilbeam --help` does not wait for.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    from .quiet import warnings_of_imports_kept_back

    with warnings_of_imports_kept_back():
        module = import_module("." + ("inspection" if name in ("Inspection", "inspect") else "job"), __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
