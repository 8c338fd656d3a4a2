"""Every problem that the package reports says what to do about it."""

from __future__ import annotations

import ast
from pathlib import Path

import easyllm

REMEDY = 4
"""Arguments of a ``Problem`` up to its remedy."""


def test_no_problem_is_without_a_remedy() -> None:
    found = {}
    for file in Path(easyllm.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Problem":
                named = {keyword.arg for keyword in node.keywords}
                found[f"{file.name}:{node.lineno}"] = len(node.args) >= REMEDY or "remedy" in named
    assert len(found) > 100
    assert [place for place, whole in found.items() if not whole] == []
