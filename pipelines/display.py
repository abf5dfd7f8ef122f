"""Results as people read them on a terminal, in a log or through a pipe."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .opening import opening
from .progress import duration

if TYPE_CHECKING:
    from distilbeam.transforms.output.increments import Changes

    from .inspection import Inspection
    from .job import Summary
    from .preview import Preview

__all__ = [
    "cleaned",
    "inspection_facts",
    "plain",
    "preview_facts",
    "show_inspection",
    "show_preview",
    "show_summary",
    "shown_value",
    "size",
    "summary_lines",
]

_MAX_LABELS = 12
_MAX_FILES = 20
_NUMBERS = ("commit", "files added", "files removed", "rejected", "rows", "share")
_UNSAFE = ("Cc", "Cs", "Zl", "Zp")
_BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def plain(show: Callable[[Console], None]) -> str:
    """What a console of 120 columns without colours would print."""
    console = Console(file=io.StringIO(), width=120, color_system=None, highlight=False, force_jupyter=False)
    with console.capture() as caught:
        show(console)
    return caught.get().rstrip("\n")


def show_summary(summary: Summary, console: Console) -> None:
    """A few lines on what a job has done."""
    for line in summary_lines(summary):
        console.print(Text(line), soft_wrap=True)
    _list(opening(summary.output, summary.format).items(), console, indent="  ")


def summary_lines(summary: Summary) -> list[str]:
    """What a job has done."""
    speed = f", {summary.tokens_per_second:,.0f} tokens/s" if summary.tokens_per_second else ""
    spent = f"in {duration(summary.seconds)}{speed}"
    if summary.rows_computed is None or not (summary.resumed or summary.changes):
        told = [f"{summary.rows:,} rows, {summary.tokens:,} tokens {spent}"]
    else:
        told = [
            f"this run: {summary.rows_computed:,} rows, {summary.tokens_computed:,} tokens {spent}",
            f"output now: {summary.rows:,} rows, {summary.tokens:,} tokens",
        ]
    shares = [
        f"truncated {_share(summary.truncated, summary.rows)}",
        f"rejected {_share(summary.rejects, summary.read)}",
    ]
    if summary.padding is not None:
        shares.insert(0, f"padding {summary.padding:.1%}")
    told.append(", ".join(shares))
    if summary.changes is not None:
        told += _changes(summary.changes)
    elif summary.resumed:
        told.append(f"{summary.resumed:,} of {summary.splits:,} splits were finished before and not redone")
    told.append(f"{summary.features}: {_plural(summary.shards, 'shard')}, {size(summary.bytes)}")
    if summary.unread:
        # Their names are data, which a terminal or a log may keep.
        told.append(
            f"keys of JSON objects that are no columns of the output: {len(summary.unread):,}; Summary.unread and "
            f"{summary.output.rstrip('/')}/_distilbeam/manifest.json name them"
        )
    if summary.losses.files:
        known = summary.losses.unknown is None and summary.losses.rows
        lost = f"about {summary.losses.rows:,} more rows" if known else "an unknown number of rows"
        told.append(
            f"lost: {lost} of {_plural(summary.losses.files, 'damaged file')}, for which one reject stands each"
        )
    if summary.rejects:
        told.append(f"rejected rows, with reasons: {summary.output.rstrip('/')}/_rejects")
    return told


def show_preview(found: Preview, console: Console) -> None:
    """Tables on what a job would do."""
    for name, fact in preview_facts(found):
        console.print(Text(f"{name:<12}"), _clean(fact), soft_wrap=True)


def preview_facts(found: Preview) -> list[tuple[str, str]]:
    """What a job would do, in pairs of a name and what is told."""
    formats = ", ".join(f"{count:,} {name}" for name, count in sorted(found.formats.items()))
    facts = [
        ("output", f"{found.output}: nothing is written, this is a dry run"),
        (
            "input",
            f"{_plural(len(found.files), 'file')} ({formats}), {size(found.bytes)}, {_plural(found.splits, 'split')}",
        ),
    ]
    if found.limit is not None:
        facts.append(("limit", f"the first {found.limit:,} rows"))
    if found.known is not None:
        facts.append(("known", f"{found.known:,} of the files are in an earlier output as they are, and are not read"))
    facts += [("file", f"{url}, {size(count)}") for url, count in found.files[:_MAX_FILES]]
    if len(found.files) > _MAX_FILES:
        facts.append(("", f"and {_plural(len(found.files) - _MAX_FILES, 'more file')}"))
    facts += [("passed over", url) for url in found.passed_over[:_MAX_FILES]]
    if len(found.passed_over) > _MAX_FILES:
        facts.append(("", f"and {len(found.passed_over) - _MAX_FILES:,} more"))
    facts += [("kept", f"{name}: {kind}") for name, kind in found.columns]
    facts += [("read only", name) for name in found.transient]
    return [*facts, *(("added", f"{name}: {kind}") for name, kind in found.features)]


def show_inspection(found: Inspection, console: Console, spell: Callable[[str], str] = str) -> None:
    """Tables on an output folder; ``spell`` turns what they say of settings into what the reader types."""
    _list(inspection_facts(found, spell), console)
    if found.opening:
        console.print()
        _list(found.opening.items(), console)
    if len(found.history) > 1:
        _commits(found, console)
    _columns(found, console)
    if found.labels:
        _labels(found, console)
    if found.rejects.total:
        _rejects(found, console, spell)
    for number, row in enumerate(found.sample):
        console.print()
        console.print(Text(f"row {number}", style="bold"))
        _list(((name, shown_value(value)) for name, value in row.items()), console, indent="  ", cut=True)


def inspection_facts(found: Inspection, spell: Callable[[str], str] = str) -> list[tuple[str, str]]:
    """What an output folder holds, in pairs of a name and what is told."""
    facts = [("output", f"{found.output}: {found.rows:,} rows, {_plural(found.shards, 'shard')}, {size(found.bytes)}")]
    facts.append(("features", found.features))
    earlier = f", {found.covered:,} of them in earlier outputs" if found.covered else ""
    facts.append(("input", f"{_plural(found.files, 'file')}{earlier}"))
    begun = f", {_moment(found.history[0].time)}" if found.history else ""
    facts.append(("commit", f"{found.commit:,}{begun}"))
    for commit in found.unfinished:
        facts.append(
            (
                "unfinished",
                spell(
                    f"commit {commit.commit:,}, begun {_moment(commit.time)}; unless a job is at it, run the same job "
                    "with `if_exists='resume'` to finish it, or with `if_exists='overwrite'` to start anew"
                ),
            )
        )
    for stage, model in enumerate(found.models):
        settings = model.get("settings") or {}
        computes = [compute for compute in found.computes if compute["stage"] == stage]
        facts += [
            ("model", " @ ".join(filter(None, (model.get("id"), model.get("revision"))))),
            ("weights", f"sha256 {model.get('weights_sha256')}"),
            ("tokenizer", f"sha256 {model.get('tokenizer_sha256')}"),
            ("settings", _pairs({name: value for name, value in settings.items() if name != "model"})),
            *(("compute", _compute(compute, len(computes) > 1)) for compute in computes),
            ("version", f"distilbeam {model.get('version')}"),
        ]
    if found.tokens:
        tokens = found.tokens
        facts.append(
            (
                "tokens",
                f"{tokens.total:,}; of a row: least {tokens.minimum:,}, median {tokens.median:,}, "
                f"95% up to {tokens.p95:,}, most {tokens.maximum:,}",
            )
        )
        facts.append(("truncated", _share(tokens.truncated, found.rows)))
    if found.vectors:
        vectors = found.vectors
        norms = (vectors.mean_norm, vectors.minimum_norm, vectors.maximum_norm)
        told = "" if None in norms else "; norm mean {:.4g}, least {:.4g}, most {:.4g}".format(*norms)
        facts.append(
            (
                "vectors",
                f"{vectors.count:,} x {vectors.dimensions:,} {vectors.dtype}{told}; {vectors.non_finite:,} not finite",
            )
        )
    facts.append(("rejected", _share(found.rejects.total, found.rows + found.rejects.total)))
    for name, count in (("dropped", found.dropped), ("added", found.added)):
        if count:
            facts.append((name, f"{_plural(count, 'row')}, by steps between reading and writing"))
    return facts


def size(count: int) -> str:
    """Bytes as people read them."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:,.1f} TB"


def _changes(changes: Changes) -> list[str]:
    again = f"{changes.splits_redone:,} computed again, " if changes.splits_redone else ""
    return [
        f"files: {changes.files_kept:,} unchanged, {changes.files_added:,} added, {changes.files_replaced:,} replaced, "
        f"{changes.files_removed:,} removed",
        f"splits: {changes.splits_kept:,} kept, {again}{changes.splits_added:,} added, "
        f"{changes.splits_removed:,} removed",
    ]


def _commits(found: Inspection, console: Console) -> None:
    table = _table("commit", "begun", "rows", "rejected", "files added", "files removed")
    for commit in found.history:
        counts = (commit.rows, commit.rejects, commit.added, commit.removed)
        table.add_row(f"{commit.commit:,}", _clean(_moment(commit.time)), *(f"{count:,}" for count in counts))
    console.print()
    _print(table, console)


def _moment(time: str) -> str:
    """A time as people write it; ISO 8601 in UTC."""
    return time.replace("T", " ").replace("+00:00", " UTC")


def _columns(found: Inspection, console: Console) -> None:
    console.print()
    console.print(Text("columns", style="bold"))
    _list(found.columns.items(), console)


def _labels(found: Inspection, console: Console) -> None:
    labels = found.labels or {}
    total = sum(labels.values())
    table = _table("label", "rows", "share", "")
    for label, rows in list(labels.items())[:_MAX_LABELS]:
        table.add_row(_clean(label), f"{rows:,}", f"{rows / total:.1%}", "#" * round(30 * rows / total))
    console.print()
    _print(table, console)
    if len(labels) > _MAX_LABELS:
        console.print(f"and {len(labels) - _MAX_LABELS} more")


def _rejects(found: Inspection, console: Console, spell: Callable[[str], str]) -> None:
    table = _table("rejected at", "rows", "error")
    for kind in found.rejects.kinds:
        table.add_row(_clean(kind["stage"]), f"{kind['rows']:,}", _clean(kind["error"]))
    console.print()
    _print(table, console)
    console.print()
    for reject in found.rejects.examples:
        unit = "row" if reject["line"] is None else "line"
        where = f"{reject['source']} {unit} {reject[unit]}" if reject["source"] else "a row"
        named = f" ({reject['id']})" if reject.get("id") is not None else ""
        console.print(_clean(f"{where}{named}: {spell(reject['reason'])}"), soft_wrap=True)


def _list(facts: Iterable[tuple[str, str]], console: Console, indent: str = "", cut: bool = False) -> None:
    """Names and values below each other; a value that is too long is cut, or goes on in the next line."""
    known = [(_clean(indent + name), _clean(value)) for name, value in facts]
    width = max((name.cell_len for name, _ in known), default=0) + 2
    for name, value in known:
        name.pad_right(width - name.cell_len)
        name.stylize("cyan")
        line = name + value
        if cut:
            line.truncate(console.width, overflow="ellipsis")
        console.print(line, soft_wrap=True)


def _table(*names: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, justify="right" if name in _NUMBERS else "left")
    return table


def _print(table: Table, console: Console) -> None:
    """A table without the blanks that fill its lines."""
    for line in console.render_lines(table, pad=False):
        text = Text.assemble(*((segment.text, segment.style or "") for segment in line))
        text.rstrip()
        console.print(text, soft_wrap=True)


def shown_value(value: Any) -> str:
    """A value of a row, as short as it can be told."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        rest = f", ... {len(value):,} in all]" if len(value) > 6 else "]"
        return "[" + ", ".join(map(shown_value, value[:6])) + rest
    if isinstance(value, dict):
        return _pairs(value)
    return "null" if value is None else str(value)[:2000]


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {shown_value(value)}" for name, value in values.items() if value not in (None, ""))


def _compute(compute: dict[str, Any], several: bool) -> str:
    told = _pairs({name: value for name, value in compute.items() if name not in ("stage", "splits")})
    return f"{told} ({_plural(compute['splits'], 'split')})" if several else told


def cleaned(text: str) -> str:
    """Text without the characters that command a terminal or turn the order of others."""
    return "".join(" " if unicodedata.category(char) in _UNSAFE or char in _BIDI else char for char in text)


def _clean(text: str) -> Text:
    """The same, in which rich sees no markup."""
    return Text(cleaned(text))


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if part and whole else "0" if not part else f"{part:,}"


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
