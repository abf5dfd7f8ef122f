"""Results as notebooks show them: small tables, with all text in them escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from . import display
from .opening import opening

if TYPE_CHECKING:
    from .inspection import Inspection
    from .job import Summary
    from .preview import Preview

__all__ = ["html_of_inspection", "html_of_lines", "html_of_preview", "html_of_summary"]

_CUT = 300  # characters of a value
_CELL = "text-align:left;vertical-align:top;max-width:60em;overflow-wrap:break-word"


def html_of_summary(summary: Summary) -> str:
    """What a job has done, a line each, and how its output is opened."""
    how = opening(summary.output, summary.format)
    return html_of_lines(display.summary_lines(summary)) + _titled("open it", _table(how.items()))


def html_of_preview(found: Preview) -> str:
    """What a job would do."""
    return _table(display.preview_facts(found))


def html_of_inspection(found: Inspection) -> str:
    """What an output holds: facts, columns, labels, rejects and the first rows."""
    parts = [_table(display.inspection_facts(found)), _titled("columns", _table(found.columns.items()))]
    if found.opening:
        parts.append(_titled("open it", _table(found.opening.items())))
    if found.labels:
        parts.append(_titled("labels", _table(((name, f"{rows:,}") for name, rows in found.labels.items()))))
    if found.rejects.total:
        kinds = ((kind["stage"], kind["error"], f"{kind['rows']:,}") for kind in found.rejects.kinds)
        parts.append(_titled("rejected", _table(kinds, ("at", "error", "rows"))))
    if found.sample:
        names = list(found.sample[0])
        rows = ([display.shown_value(row.get(name)) for name in names] for row in found.sample)
        parts.append(_titled(f"first {len(found.sample)} rows", _table(rows, names)))
    return "".join(parts)


def html_of_lines(lines: Iterable[str]) -> str:
    """Lines below each other."""
    return "<div>" + "<br>".join(map(_text, lines)) + "</div>"


def _titled(title: str, body: str) -> str:
    return f"<details open><summary>{_text(title)}</summary>{body}</details>"


def _table(rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    top = "".join(f'<th style="{_CELL}">{_text(name)}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f"<table>{f'<thead><tr>{top}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _text(text: str) -> str:
    clean = display.cleaned(text)
    return escape(clean if len(clean) <= _CUT else clean[:_CUT] + "\N{HORIZONTAL ELLIPSIS}")
