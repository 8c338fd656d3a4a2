"""Problems as the user reads them."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from easyllm.cli.origins import Origin
from easyllm.spec.problems import ABSENT, UNKNOWN, Problem

REFUSED = 2


def refuse(problems: Sequence[Problem], origin: Origin) -> int:
    """Print every problem to stderr; returns the exit status."""
    several = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    lines = [f"easyllm: the spec has {several}; nothing was started."]
    for problem in problems:
        lines += ["", *_lines(problem, origin(problem.key))]
    print("\n".join(lines), file=sys.stderr)
    return REFUSED


def _lines(problem: Problem, origin: str) -> list[str]:
    value = "" if problem.value in (None, ABSENT) and not origin else _shown(problem.value)
    head = problem.key + (f" = {value}" if value else "")
    head += f"   ({origin})" if origin else ""
    lines = [f"  {head}"]
    remedies = [problem.remedy] if problem.remedy else []
    if problem.message == UNKNOWN and origin.startswith("recipe/"):
        remedies.append(f"to leave out what the recipe gives, add '~{problem.key}'")
    for text in (problem.message, "; ".join(remedies)):
        if text:
            lines += textwrap.wrap(
                text, 96, initial_indent="    ", subsequent_indent="    ",
                break_long_words=False, break_on_hyphens=False,
            )  # fmt: skip
    return lines


def _shown(value: Any) -> str:
    if value is ABSENT:
        return ""
    if isinstance(value, str):
        return value
    return textwrap.shorten(json.dumps(value, ensure_ascii=False, default=str), 80)
