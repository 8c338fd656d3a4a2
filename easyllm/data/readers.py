"""Readers: how files become documents. One small class each.

To add your own, subclass ``easyllm.spec.roles.Reader``, or ``FileReader`` below where the
documents lie in files at a path, and name the class by ``_target_``.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from easyllm.errors import UserError
from easyllm.spec.roles import Reader
from easyllm.spec.types import Place

ROLES = ("system", "user", "assistant")
"""Who speaks in a conversation."""

Document = str | list[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class FileReader(Reader):
    """Base of the readers of UTF-8 files."""

    path: Place
    """A file, a folder (every file below it with one of the format's suffixes) or a
    glob pattern."""

    suffixes: ClassVar[tuple[str, ...]]

    def files(self) -> list[Path]:
        path = Path(self.path).expanduser()
        if path.is_file():
            return [path]
        if path.is_dir():
            found = [file for file in path.rglob("*") if file.suffix in self.suffixes]
        elif glob.has_magic(self.path):
            # Path.glob takes no absolute pattern
            found = [Path(match) for match in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        else:
            raise FileNotFoundError(f"no such file or folder: {self.path}")
        found = sorted(file for file in found if file.is_file() and file.name[0] != ".")
        if not found:
            wanted = " or ".join(f"*{suffix}" for suffix in self.suffixes)
            raise FileNotFoundError(
                f"no {wanted} in the folder {self.path}"
                if path.is_dir()
                else f"no file matches {self.path}"
            )
        return found

    @staticmethod
    def lines(file: Path) -> Iterator[tuple[int, str]]:
        """The lines of a file from number 1, without their ends.

        Raises UserError where the file is not UTF-8.
        """
        number = 0
        # only \n and \r\n end a line: text may hold U+2028, form feeds and the like
        with file.open(encoding="utf-8-sig", newline="\n") as handle:
            try:
                for number, line in enumerate(handle, 1):
                    yield number, line.rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{file}: not UTF-8 after line {number}: {error.reason}; "
                    f"convert it, e.g. with iconv -t UTF-8"
                ) from None


def bad_line(file: Path, number: int, reason: str, remedy: str) -> UserError:
    return UserError(f"{file}, line {number}: {reason}; {remedy}")


@dataclass(frozen=True, kw_only=True)
class Text(FileReader):
    """Plain text, UTF-8."""

    split: Literal["blank_line", "file"] = "blank_line"
    """What ends a document: a blank line, or only the end of the file."""

    suffixes = (".txt", ".text", ".md", ".rst")

    def documents(self, file: Path) -> Iterator[str]:
        document: list[str] = []
        for _, line in self.lines(file):
            if line.strip() or (self.split == "file" and document):
                document.append(line)
            elif document:
                yield "\n".join(document)
                document.clear()
        if document:
            yield "\n".join(document)


@dataclass(frozen=True, kw_only=True)
class JSONL(FileReader):
    """JSON Lines: one object a line."""

    field: str = "text"
    """The object's key that holds the document: a text, or a conversation as a list of
    ``{"role": …, "content": …}``."""

    suffixes = (".jsonl", ".ndjson")

    def documents(self, file: Path) -> Iterator[Document]:
        for number, line in self.lines(file):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise bad_line(file, number, f"not JSON: {error}", "mend or remove it") from None
            if not isinstance(entry, dict) or self.field not in entry:
                has = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
                raise bad_line(
                    file, number, f"no field {self.field!r} (it has: {has})",
                    "give the reader's field the right name",
                )  # fmt: skip
            document = entry[self.field]
            if not isinstance(document, str) and not _is_conversation(document):
                raise bad_line(
                    file, number, f"{self.field!r} is neither a text nor a conversation",
                    'a conversation is a list of {"role": "user" or "assistant", "content": text}',
                )  # fmt: skip
            yield document


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(message, dict)
            and message.get("role") in ROLES
            and isinstance(message.get("content"), str)
            for message in value
        )
    )


@dataclass(frozen=True, kw_only=True)
class Conversations(FileReader):
    """Conversations as tab-separated values: ``user<TAB>assistant<TAB>user<TAB>…``, one a line."""

    suffixes = (".tsv", ".txt")

    def documents(self, file: Path) -> Iterator[list[dict[str, str]]]:
        for number, line in self.lines(file):
            if not line.strip():
                continue
            turns = line.split("\t")
            if len(turns) % 2:
                raise bad_line(
                    file, number, f"{len(turns)} tab-separated fields leave the last unanswered",
                    "user and assistant take turns, so give an even number",
                )  # fmt: skip
            yield [
                {"role": ROLES[1 + place % 2], "content": turn} for place, turn in enumerate(turns)
            ]


@dataclass(frozen=True, kw_only=True)
class PythonDocs(Reader):
    """The language reference that CPython carries for ``help()``: half a megabyte of
    English, one document a topic. Needs no file and no network."""

    def files(self) -> list[Path]:
        found = find_spec("pydoc_data.topics")
        if found is None or found.origin is None:
            raise FileNotFoundError("this Python carries no module pydoc_data.topics")
        return [Path(found.origin)]

    def documents(self, file: Path) -> Iterator[str]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield topics[name].strip("\n")
