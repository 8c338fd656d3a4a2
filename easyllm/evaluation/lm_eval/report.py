"""Results of tasks as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

ITEMS = 12
"""Changed items whose numbers are shown."""


def show(results: Mapping[str, Any], console: Console) -> None:
    """Print a line for each metric of each task."""
    before = results.get("comparison")
    table = Table(title=f"lm-eval {results['lm_eval']}", title_justify="left")
    for heading in ("task", "metric", "items", results["model"]):
        table.add_column(heading, overflow="fold")
    if before:
        for heading in (results["baseline"]["model"], "difference", "better", "worse"):
            table.add_column(heading, overflow="fold")
    for task, result in results["tasks"].items():
        for metric, values in result["metrics"].items():
            row = [task, metric, str(result["items"]), _number(values["value"], values["stderr"])]
            if before:
                found = before[task]["metrics"][metric]
                row += [f"{found['baseline']:.4g}", _number(found["difference"], found["stderr"])]
                row += [_items(before[task][kind][metric]) for kind in ("better", "worse")]
            table.add_row(*row)
    console.print(table)


def _number(value: float, stderr: float | None) -> str:
    return f"{value:.4g}" + (f" ± {stderr:.2g}" if stderr is not None else "")


def _items(items: list[str]) -> str:
    shown = ", ".join(items[:ITEMS])
    return f"{len(items)}" + (f": {shown}{', …' if len(items) > ITEMS else ''}" if items else "")
