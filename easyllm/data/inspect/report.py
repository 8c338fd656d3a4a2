"""An inspection in the terminal and as one HTML page."""

from __future__ import annotations

from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from easyllm.data.inspect.inspection import Inspection, ShownRow, Span

IN_TERMINAL = 2
"""Rows shown in the terminal, where each is long: those in which training begins and ends
most often."""

SHOWN = 2000
"""Characters of a row shown in the terminal."""

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr.chosen { font-weight: bold }
.bar { background: #4878a8; height: .9rem } td.wide { width: 24rem }
.document { white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid #4878a8;
  margin: .5rem 0; padding: .1rem .6rem; font-family: ui-monospace, monospace; font-size: 13px }
.trained { background: #cdebc9; color: #123d0d } .untrained { color: #777 }
"""

LENGTHS = "Documents by length"

VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Visible signs for control characters, with which a text could control the terminal."""

SOURCES = (
    ("documents", "documents", ","),
    ("tokens", "tokens", ","),
    ("trained_tokens", "trained tokens", ","),
    ("heldout_documents", "held-out documents", ","),
    ("weight", "weight", ","),
    ("share", "share of an epoch's tokens", ".2%"),
)
"""Key, heading and number format of each column."""


def show(found: Inspection, console: Console) -> None:
    """Print an inspection. Without colours untrained tokens are between ⟦ and ⟧."""
    for heading, columns, rows in _tables(found):
        console.print(Text(heading, style="bold"))
        table = Table()
        for number, column in enumerate(columns):
            table.add_column(column, justify="right" if number else "left")
        for chosen, cells in rows:
            table.add_row(*map(Text, cells), style="bold" if chosen else None)
        console.print(table)
    colours = console.color_system is not None
    by_changes = sorted(found.rows, key=lambda row: -sum(map(len, row.documents)))
    for row in by_changes[:IN_TERMINAL]:
        console.print(Text(_heading(row), style="bold"))
        text = Text("\n").join(
            Text().join(_coloured(span, colours) for span in spans) for spans in row.documents
        )
        left = len(text) - SHOWN
        text.truncate(SHOWN)
        console.print(text, soft_wrap=True)
        if left > 0:
            console.print(f"… {left:,} more characters; the page has them", style="dim")


def _coloured(span: Span, colours: bool) -> Text:
    text = span.text.translate(VISIBLE)
    if span.trained:
        return Text(text, style="green")
    return Text(text, style="dim") if colours else Text(f"⟦{text}⟧")


def page(found: Inspection) -> str:
    """One HTML page that needs no other file."""
    parts = [f"<h1>{escape(found.title)}</h1>"]
    most = max(count for _, _, count in found.histogram)
    for heading, columns, rows in _tables(found):
        parts.append(f"<h2>{escape(heading)}</h2><table><tr>")
        parts += [f"<th>{escape(column)}</th>" for column in columns]
        parts.append("</tr>")
        for number, (chosen, cells) in enumerate(rows):
            parts.append('<tr class="chosen">' if chosen else "<tr>")
            parts += [f"<td>{escape(cell)}</td>" for cell in cells]
            if heading == LENGTHS:
                width = 100 * found.histogram[number][2] / most
                parts.append(f'<td class="wide"><div class="bar" style="width:{width:.1f}%">')
                parts.append("</div></td>")
            parts.append("</tr>")
        parts.append("</table>")
    parts.append(
        '<h2>Rows</h2><p><span class="trained">trained</span> and '
        '<span class="untrained">untrained</span> tokens; a line on the left for each document. '
        "Its first token is never trained: nothing predicts it.</p>"
    )
    for row in found.rows:
        parts.append(f"<h3>{escape(_heading(row))}</h3>")
        for spans in row.documents:
            parts.append('<div class="document">')
            parts += [
                f'<span class="{"trained" if span.trained else "untrained"}">'
                f"{escape(span.text.translate(VISIBLE))}</span>"
                for span in spans
            ]
            parts.append("</div>")
    title = escape(found.title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>\n{''.join(parts)}\n</body></html>\n"
    )


_Rows = list[tuple[bool, list[str]]]


def _tables(found: Inspection) -> list[tuple[str, list[str], _Rows]]:
    """Heading, columns and rows of each table; True marks the row that is in use."""
    sources: _Rows = [
        (False, [name, *(format(source[key], form) for key, _, form in SOURCES)])
        for name, source in found.sources.items()
    ]
    lengths: _Rows = [
        (False, [f"{low:,} to {high:,}", f"{count:,}"]) for low, high, count in found.histogram
    ]
    packings: _Rows = [
        (name == found.packing, [name, f"{packed['rows']:,}", f"{packed['fill']:.2%}"])
        for name, packed in found.packings.items()
    ]
    packed = (
        f"Rows of {found.seq_len:,} tokens an epoch, packed {found.packing}; "
        f"{found.longer_than_a_row:,} documents are longer"
        + (f", {found.long_conversations}" if found.long_conversations else "")
    )
    return [
        (
            f"Sources{_chats(found.chats)}",
            ["source", *(heading for _, heading, _ in SOURCES)],
            sources,
        ),
        (LENGTHS, ["tokens", "documents"], lengths),
        (packed, ["packing", "rows", "fill"], packings),
    ]


def _chats(counts: dict[str, Any]) -> str:
    """How many conversations became several documents, where any did."""
    if not counts.get("unrolled"):
        return ""
    return (
        f"; {counts['unrolled']:,} of {counts['conversations']:,} conversations are several "
        f"documents, because the chat template writes earlier turns differently later, and "
        f"repeat {counts['repeated_tokens']:,} tokens"
    )


def _heading(row: ShownRow) -> str:
    documents = "1 document" if len(row.documents) == 1 else f"{len(row.documents)} documents"
    return f"Row {row.index:,}: {documents}, {row.padding:,} padded"
