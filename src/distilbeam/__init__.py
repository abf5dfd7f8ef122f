"""distilbeam: DistilBERT features for large text corpora, on Apache Beam.

``distilbeam.transforms`` holds what is composed in a pipeline, ``distilbeam.pipelines`` what is run as a command.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
