"""How problems are shown to the user."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from easyllm.cli.origins import COMMAND_LINE, Origin
from easyllm.errors import REFUSED
from easyllm.printable import printable
from easyllm.progress import columns
from easyllm.spec.problems import ABSENT, TEXT, UNKNOWN, Problem

LONGEST = 120
"""Most characters of a value that are shown."""
WIDEST = 96
"""Most columns of a line."""


def refuse(problems: Sequence[Problem], origin: Origin) -> int:
    """Print every problem to stderr; returns the exit status."""
    several = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    lines = [f"easyllm: the spec has {several}; nothing was started."]
    for problem in problems:
        lines += ["", *_lines(problem, origin)]
    print(printable("\n".join(lines)), file=sys.stderr)
    return REFUSED


def _lines(problem: Problem, origin: Origin) -> list[str]:
    place = origin(problem.key)
    value = "" if problem.value in (None, ABSENT) and not place else _shown(problem.value)
    remedies = [problem.remedy] if problem.remedy else []
    if isinstance(problem.value, int | float) and place == COMMAND_LINE:
        value = _shortened(origin.typed(problem.key) or value)
    if problem.message == TEXT and isinstance(problem.value, int | float):
        if quoted := origin.quoted(problem.key):
            remedies = [f"quote it: {quoted}"]
            value = _shortened(origin.typed(problem.key) or value)
        else:
            remedies = ["put what you wrote between quotation marks"]
    if problem.message == UNKNOWN and place.startswith("recipe/"):
        remedies.append(f"to leave out what the recipe gives, add '~{problem.key}'")
    head = _shortened(problem.key) + (f" = {value}" if value else "")
    lines = [f"  {head}" + (f"   ({place})" if place else "")]
    width = min(columns(WIDEST), WIDEST)
    for text in (problem.message, "; ".join(remedies)):
        if text:
            lines += textwrap.wrap(
                printable(text), width, initial_indent="    ", subsequent_indent="    ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return lines


def _shown(value: Any) -> str:
    if value is ABSENT:
        return ""
    if isinstance(value, str):
        return _shortened(value)
    return textwrap.shorten(json.dumps(value, ensure_ascii=False, default=str), 80)


def _shortened(text: str) -> str:
    """``text`` on one line."""
    shown = printable(text, keep="")
    return shown if len(shown) <= LONGEST else shown[: LONGEST - 1] + "…"
