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
    from .featurization import FeatureSpec
    from .inference import Classify, Embed, Featurize, Tokenize
    from .rejects import Rejects

__all__ = [
    "CheckpointError",
    "Classify",
    "DistilbeamError",
    "Embed",
    "Encoder",
    "FeatureSpec",
    "Featurize",
    "InputError",
    "OutputError",
    "OutputExistsError",
    "Prediction",
    "ReadDocuments",
    "RejectLimitError",
    "Rejects",
    "SettingsError",
    "Tokenize",
    "WriteFeatures",
]

_MODULES = {
    "Classify": "inference",
    "Embed": "inference",
    "Encoder": "encoder",
    "FeatureSpec": "featurization",
    "Featurize": "inference",
    "Prediction": "encoder",
    "ReadDocuments": "documents",
    "Rejects": "rejects",
    "Tokenize": "inference",
    "WriteFeatures": "features",
}


def __getattr__(name: str) -> Any:
    # Beam takes seconds to import; one who wants an error class or `distilbeam --help` does not wait for it.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
