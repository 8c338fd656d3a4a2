"""The README and the pages of docs/, and the blocks and files in them."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
GENERATED = ROOT / "docs" / "keys.md"
"""The reference of keys, which `make docs` writes."""
FILES = [
    ROOT / "README.md",
    *(
        file
        for file in sorted((ROOT / "docs").rglob("*.md"))
        if "_build" not in file.parts and file != GENERATED
    ),
]
TEXTS = {file: file.read_text("utf-8") for file in FILES}
"""Each page by its file."""
README = TEXTS[FILES[0]]

OWN = re.compile(r"`(mine/[\w/]+\.yaml)`[^`]*```yaml\n(.*?)^```", re.MULTILINE | re.DOTALL)
"""A YAML block that is a file: its name stands before it."""
SPAN = re.compile(r"`([^`\n]+)`")


class Block(NamedTuple):
    """A fenced block. `shell` commands are run by tests, `bash` commands are composed."""

    page: Path
    kind: str
    text: str


BLOCKS = [
    Block(file, kind, body)
    for file, text in TEXTS.items()
    for kind, body in re.findall(r"^```([\w{}]*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
]
SHELL = [line for block in BLOCKS if block.kind == "shell" for line in block.text.splitlines()]
TABLE = re.findall(r"`(python -m easyllm [^`]*)` \|$", README, re.MULTILINE)
"""What each command of the original is here."""


def spans() -> list[tuple[Path, str]]:
    """The code within the text of all pages, what stands in blocks not."""
    return [
        (file, span)
        for file, text in TEXTS.items()
        for span in SPAN.findall(re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    ]


def write_files(folder: Path) -> None:
    """Write the files that the pages speak of."""
    turns = [f"What is {n} and {n}?\tIt is {2 * n}." for n in range(200)]
    for name in ("news.tsv", "conversations.tsv", "keywords.tsv"):
        (folder / name).write_text("\n".join(turns) + "\n")
    (folder / "news.txt").write_text("\n\n".join(f"Item {n} of the news." for n in range(50)))
    (folder / "prompt.txt").write_text("The statement\nA class\n")
    questions = [{"id": "sea", "prompt": "The sea"}, {"messages": [{"user": "Who are you?"}]}]
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    lines = [f"Line {n} of a long poem about the sea and the sky." for n in range(100)]
    (folder / "verses.txt").write_text("\n".join(lines))
    found = [pair for text in TEXTS.values() for pair in OWN.findall(text)]
    for block in BLOCKS:
        first, _, _ = block.text.partition("\n")
        if block.kind == "python" and first.startswith("# mine/"):
            found.append((first.removeprefix("# "), block.text))
    for name, text in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")


def load_module(file: Path) -> ModuleType:
    """The module in a file that the pages speak of or are made by."""
    spec = importlib.util.spec_from_file_location(f"documented_{file.stem}", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
