"""What lies before the writer in the graph of a pipeline: the reader, transforms with a model, steps of the user's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import apache_beam as beam

from .documents import ReadDocuments, give_ledger
from .errors import SettingsError
from .output.ledger import Ledger
from .output.split_writer import ALL_BATCHES
from .row_fields import FEATURE_TYPES
from .stage import Stage

__all__ = ["Upstream", "look_upstream"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Upstream:
    """What lies before a PCollection, as far as one step has one input.

    Attributes:
        reading: ``ReadDocuments`` as it was applied; None if the graph does not lead to one.
        stages: transforms with a model, in order.
        steps: names of all other steps, in order.
        filters: names of those that can only drop batches, and do not change them.
    """

    reading: Any | None
    stages: tuple[Stage, ...]
    steps: tuple[str, ...]
    filters: tuple[str, ...]

    @property
    def is_ours(self) -> bool:
        """Whether nothing but our own transforms lies between the documents and here."""
        return self.reading is not None and not self.steps

    @property
    def fields(self) -> list[tuple[str, Any]]:
        """Names and types of the fields that the features are in rows and dicts."""
        found = []
        for stage in self.stages:
            prefix = stage.settings["prefix"]
            found += [
                (prefix + name, FEATURE_TYPES[name])
                for name in (*stage.settings["features"], "token_count", "truncated")
            ]
        return found

    def refuse_filters(self) -> None:
        """Refuse steps that drop whole batches of documents, before anything is computed.

        Raises:
            SettingsError: there is one.
        """
        if self.reading is not None and self.filters:
            raise SettingsError(
                f"{self.filters[0]!r} drops batches between ReadDocuments and WriteFeatures; {ALL_BATCHES}"
            )

    def of_rows(self, resume: bool) -> Upstream:
        """What lies before rows or dicts: no reader, since nobody can tell the splits of rows made of its batches.

        Raises:
            SettingsError: there is one, and the job is to resume.
        """
        if self.reading is None:
            return self
        steps = ", ".join(map(repr, self.steps))
        if resume:
            raise SettingsError(
                f"`if_exists` is 'resume', but WriteFeatures is given rows that the steps {steps} make of the batches "
                "of ReadDocuments, and a later run cannot tell which of them are done; give it batches, without "
                "`schema`, or set `if_exists='overwrite'` to compute all again"
            )
        _log.warning(
            "the steps %s make rows of the batches of ReadDocuments: they are written as rows from anywhere, and what "
            "was rejected before is only counted (read_rejects, rejected_by_model), not written; the transform Rejects "
            "gives it",
            steps,
        )
        return replace(self, reading=None)

    def attach(self, ledger: Ledger) -> Any:
        """Give the reader a ledger, unless it has one already, and tell it of the steps; gives the ledger it has then.

        Raises:
            SettingsError: it has one of another output, and one of the two goes on with what is there.
        """
        if self.reading is None:
            return None
        known = give_ledger(self.reading, ledger, self.steps)
        other = getattr(known, "output", ledger.output)
        if other != ledger.output and (ledger.resume or getattr(known, "resume", False)):
            raise SettingsError(
                f"one ReadDocuments gives documents to {other!r} and {ledger.output!r}; splits that are finished in "
                "one would be missing in the other: read the input once for each, or do without `if_exists='resume'`"
            )
        return known


def look_upstream(batches: beam.PCollection) -> Upstream:
    """Follow the graph from a PCollection back to where the documents are read.

    Raises:
        SettingsError: it holds the batches of several ``ReadDocuments``.
    """
    if len(readers := _readers(batches)) > 1:
        raise SettingsError(
            f"the batches of several ReadDocuments ({', '.join(map(repr, readers))}) come to one WriteFeatures, which "
            "writes those of one plan; read all files by one ReadDocuments with a list of paths, or write each to its "
            "own folder"
        )
    stages: list[Stage] = []
    steps: list[str] = []
    filters: list[str] = []
    while (node := batches.producer) is not None:
        ours = next((each for each in _composites(node) if isinstance(each.transform, ReadDocuments | Stage)), None)
        if ours is not None and isinstance(ours.transform, ReadDocuments):
            return Upstream(ours, tuple(stages[::-1]), tuple(steps[::-1]), tuple(filters[::-1]))
        if ours is not None:
            stages.append(ours.transform)
        else:
            steps.append(node.full_label)
            if _is_filter(node.transform):
                filters.append(node.full_label)
        inputs = (ours or node).inputs
        if len(inputs) != 1 or not isinstance(inputs[0], beam.PCollection):
            break
        (batches,) = inputs
    return Upstream(None, tuple(stages[::-1]), tuple(steps[::-1]), tuple(filters[::-1]))


def _readers(batches: beam.PCollection) -> dict[str, None]:
    """Labels of all ``ReadDocuments`` whose batches surely come here as they are, but for what our stages add."""
    found: dict[str, None] = {}
    waiting, seen = [batches], set()
    while waiting:
        node = waiting.pop().producer
        if node is None or node in seen:
            continue
        seen.add(node)
        ours = next((each for each in _composites(node) if isinstance(each.transform, ReadDocuments | Stage)), None)
        if ours is not None and isinstance(ours.transform, ReadDocuments):
            found[ours.full_label] = None
        elif ours is not None or isinstance(node.transform, beam.Flatten) or _is_filter(node.transform):
            waiting += [each for each in (ours or node).inputs[::-1] if isinstance(each, beam.PCollection)]
    return found


def _composites(node: Any) -> Iterator[Any]:
    while node is not None:
        yield node
        node = node.parent


def _is_filter(transform: Any) -> bool:
    """Whether this is what ``beam.Filter`` makes, by the name that Beam gives it, whatever the user calls the step."""
    return isinstance(transform, beam.ParDo) and str(transform.label).startswith("Filter(")
