"""Beam's pipelines in IPython."""

from __future__ import annotations

import logging
import sys
from typing import Any

from apache_beam import pipeline

__all__: list[str] = []


def _let_pipelines_be_built() -> None:
    """Let Beam build pipelines in IPython where its interactive part cannot be imported.

    In IPython it puts the number of the cell before the label of every transform, by a part that needs a pandas before
    2.4 and more that only ``apache-beam[interactive]`` installs; without them no transform can be applied at all. The
    number is left out then, and nothing else changes.
    """
    if "IPython" not in sys.modules:
        return
    number = pipeline.alter_label_if_ipython

    def number_if_possible(transform: Any, pvalueish: Any) -> None:
        handler = logging.NullHandler()
        logging.root.addHandler(handler)  # else what is imported there gives the root a handler for its warnings
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            number(transform, pvalueish)
        except (ImportError, AttributeError):
            pipeline.alter_label_if_ipython = _leave
        else:
            pipeline.alter_label_if_ipython = number
        finally:
            logging.disable(before)
            logging.root.removeHandler(handler)

    pipeline.alter_label_if_ipython = number_if_possible


def _leave(transform: Any, pvalueish: Any) -> None:
    pass


_let_pipelines_be_built()
