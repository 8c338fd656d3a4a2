"""The field's words: none of the names and phrases that were replaced by them has come back."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

import easyllm

PACKAGE = Path(easyllm.__file__).parent
ROOT = PACKAGE.parent
NAMES = {
    "told": "problems, reason, fields: what it holds", "taker": "sink", "arriving": "reader",
    "anew": "weights_only", "passed_over": "rejected, skipped", "goes_on": "resumes",
    "set_aside": "archive", "set_apart": "quarantine", "tidy": "prune", "seal": "write_manifest",
    "choosing": "sampler", "spill": "external_sort", "originals": "legacy_store",
    "workshop": "staging", "aside": "temporary", "from_first": "broadcast_object",
    "from_all": "all_gather_object", "apart": "async_tracker", "guard": "middleware",
    "lacking": "missing", "lacks": "missing", "insecure": "allow_unauthenticated",
    "new_file": "atomic_write", "new_folder": "atomic_dir",
}  # fmt: skip
"""Words of identifiers, each with the field's word for it."""
PHRASES = {
    r"passed? over": "skip", r"\banew\b": "again", r"\bgo(es|ing)? on\b(?! (a|the|its) )": "resume",
    r"\bset (aside|apart)\b": "archive, quarantine", r"for want of": "because there is no",
    r"\bwhoever\b": "the user, the caller", r"\bis sound\b": "is valid", r"\bmend": "fix",
    r"\bare told\b|\bis told\b": "is reported", r"\bfellows?\b": "peer", r"\bshall\b": "must",
    r"asks for consent": "gated repository", r"\blest\b|\bhence\b|\bthus\b": "so",
}  # fmt: skip
"""What texts do not say, each with what they say instead."""
OLD_NAMES = {"easyllm/components.py", "easyllm/spec/renamed.py"}
"""Files that name what was renamed, so that it is refused with its new name."""


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield line, node.name
        elif isinstance(node, ast.Name):
            yield line, node.id
        elif isinstance(node, ast.Attribute):
            yield line, node.attr
        elif isinstance(node, ast.arg):
            yield line, node.arg


def texts(file: Path) -> Iterator[tuple[int, str]]:
    """Comments and strings of a module; lines of a page."""
    content = file.read_text("utf-8")
    if file.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield token.start[0], token.string


def pages() -> list[Path]:
    docs = [page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts]
    return sorted([ROOT / "README.md", *docs, *(ROOT / "conf").rglob("*.yaml")])


@pytest.mark.parametrize("file", sources(), ids=lambda f: str(f.relative_to(PACKAGE)))
def test_identifiers(file: Path) -> None:
    found = [
        f"{file}:{line}: {name}: {NAMES[word]}"
        for line, name in [(0, file.stem), *names(ast.parse(file.read_text("utf-8")))]
        for word in NAMES
        if re.search(rf"(^|_){word}($|_)", name.lower())
    ]
    assert not found or str(file.relative_to(ROOT)) in OLD_NAMES, "\n".join(found)


@pytest.mark.parametrize("file", [*sources(), *pages()], ids=lambda f: str(f.relative_to(ROOT)))
def test_texts(file: Path) -> None:
    found = [
        f"{file}:{line}: {match[0]!r}: {instead}"
        for line, text in texts(file)
        for phrase, instead in PHRASES.items()
        if (match := re.search(phrase, text, re.IGNORECASE))
    ]
    assert not found or str(file.relative_to(ROOT)) in OLD_NAMES, "\n".join(found)
