"""What users compose in their own pipelines."""

from .encoder import Encoder, Prediction
from .inference import Classify, Embed, Featurize, Tokenize

__all__ = [
    "Classify",
    "Embed",
    "Encoder",
    "Featurize",
    "Prediction",
    "Tokenize",
]
