"""What users compose in their own pipelines."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    DistilbeamError,
    InputError,
    OutputError,
    OutputExistsError,
    RejectLimitError,
    SettingsError,
)

if TYPE_CHECKING:
    from .documents import ReadDocuments
    from .encoder import Encoder, Prediction
    from .features import WriteFeatures
    from .inference import Classify, Embed, Featurize, Tokenize
    from .tokenization import tokenize

__all__ = [
    "CheckpointError",
    "Classify",
    "DistilbeamError",
    "Embed",
    "Encoder",
    "Featurize",
    "InputError",
    "OutputError",
    "OutputExistsError",
    "Prediction",
    "ReadDocuments",
    "RejectLimitError",
    "SettingsError",
    "Tokenize",
    "WriteFeatures",
    "tokenize",
]

_MODULES = {
    "Classify": "inference",
    "Embed": "inference",
    "Encoder": "encoder",
    "Featurize": "inference",
    "Prediction": "encoder",
    "ReadDocuments": "documents",
    "Tokenize": "inference",
    "WriteFeatures": "features",
    "tokenize": "tokenization",
}


def __getattr__(name: str) -> Any:
    # Beam takes seconds to import; one who wants an error class or `distilbeam --help` does not wait for it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
