"""The comparisons as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from easyllm.evaluation.verify.comparisons import Comparison
from easyllm.printable import printable

COLORS = {"same": "green", "differs": "red", "not compared": "yellow"}


def show(found: Sequence[Comparison], console: Console) -> None:
    """Print a line for each comparison."""
    table = Table(title="From the data to what is served", title_justify="left")
    for heading in ("what", "between", "", "found"):
        table.add_column(heading, overflow="fold")
    for comparison in found:
        color = COLORS[comparison.status]
        table.add_row(
            comparison.name, escape(comparison.between), f"[{color}]{comparison.status}[/{color}]",
            escape(printable(comparison.found)),
        )  # fmt: skip
    console.print(table)
