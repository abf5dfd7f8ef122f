"""Results printed in Python and shown in a notebook."""

import io
from html.parser import HTMLParser

import pytest
from rich.console import Console

from distilbeam.pipelines.display import show_inspection, show_summary
from distilbeam.pipelines.inspection import Inspection, Rejects, TokenCounts
from distilbeam.pipelines.job import Summary

HOSTILE = "<script>alert('x')</script>&\u202e\x1b[31m"


class Cells(HTMLParser):
    """The tags of a page, each of which is closed, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag != "br":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def found() -> Inspection:
    return Inspection(
        output=f"out {HOSTILE}",
        commit=1,
        history=[],
        unfinished=[],
        rows=3,
        files=1,
        covered=0,
        shards=1,
        bytes=1234,
        columns={HOSTILE: "string", "label": "string"},
        models=[{"id": "m", "settings": {"max_length": 7}}],
        computes=[],
        rejects=Rejects(1, [{"stage": "read", "error": "LineTooLong", "rows": 1}], []),
        labels={HOSTILE: 2, "b": 1},
        tokens=TokenCounts(9, 1, 3, 5, 5, 0),
        vectors=None,
        sample=[{HOSTILE: HOSTILE, "label": "b"}, {HOSTILE: "x" * 5000, "label": None}],
    )


@pytest.fixture
def summary() -> Summary:
    return Summary(f"out {HOSTILE}", 3, 1, 9, 0, 2.5, 3.6, None, 1, 0, 1, 1234)


def printed(show: object, thing: object) -> str:
    stream = io.StringIO()
    show(thing, Console(file=stream, width=120, highlight=False))  # type: ignore[operator]
    return stream.getvalue().rstrip("\n")


def test_what_python_prints_is_what_the_command_prints(found: Inspection, summary: Summary) -> None:
    assert str(found) == printed(show_inspection, found)
    assert str(summary) == printed(show_summary, summary)
    assert "3 rows, 9 tokens in 2.5 s" in str(summary)
    assert "Inspection(" in repr(found)
    assert "\n" not in repr(found)


def test_a_notebook_shows_tables_without_the_markup_of_data(found: Inspection, summary: Summary) -> None:
    for page in (found._repr_html_(), summary._repr_html_()):
        cells = Cells(page)
        assert set(cells.tags) <= {"table", "thead", "tbody", "tr", "td", "th", "details", "summary", "div", "br"}
        assert any("<script>alert('x')</script>&" in text for text in cells.texts)
        assert not any(char in page for char in "\u202e\x1b")
    assert max(map(len, Cells(found._repr_html_()).texts)) < 400
    assert "label" in Cells(found._repr_html_()).texts
