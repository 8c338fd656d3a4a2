"""Readers of text and JSON: how files become documents. One small class each.

To add your own, subclass ``easyllm.spec.roles.Reader``, or ``FileReader`` below where the
documents are in files at a path, and name the class by ``_target_``.

A bad record is given as ``Rejected``, and reading of its file continues. A record is bad that is
not UTF-8, holds NUL bytes, is too long or is not of the reader's form. All that comes after the
place at which a compressed file is cut short or damaged is rejected once. An empty file holds
no document and is not an error; a file that cannot be opened stops the stage.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from easyllm.data.chat import beside
from easyllm.data.chat.values import is_empty
from easyllm.data.sources import io
from easyllm.data.sources.records import document_in, json_objects, keyed, text_in, turns_taken
from easyllm.errors import BadRecord
from easyllm.spec.problems import Problem
from easyllm.spec.roles import ByteRange, Document, File, Reader, Record, Rejected
from easyllm.spec.run import RunSpec
from easyllm.spec.types import Place, PositiveFloat

BLANK_LINE = rb"\n[ \t\r\f\v]*\n"


@dataclass(frozen=True, kw_only=True)
class FileReader(Reader):
    """Base of the readers of files, plain or compressed with gzip, zstd, xz or bzip2."""

    path: Place
    """A file, a folder (every file below it with one of the format's suffixes), a glob
    pattern, or a URL of any of them that fsspec opens, such as ``s3://bucket/texts/*.gz``."""
    max_record_mb: PositiveFloat = 64.0
    """Longest record in MB; a longer one is rejected and never held in memory."""

    suffixes: ClassVar[tuple[str, ...]]
    separator: ClassVar[bytes | None] = None
    """A regular expression for what separates two records, ending in a line's end, where files
    may be read in parts."""

    def files(self) -> list[Path | str]:
        return io.find(self.path, self.suffixes)

    @property
    def longest(self) -> int:
        """Bytes of the longest record."""
        return int(self.max_record_mb * 1e6)

    def lines(self, file: File) -> Iterator[tuple[int, str | Rejected]]:
        """The lines of a file with their numbers from 1, without their ends; ``Rejected`` in
        place of a bad one."""
        return io.lines(file, self.longest)

    def parts(self, file: Path | str, size: int, rows: int) -> Iterator[ByteRange] | None:
        if self.separator is None or isinstance(file, str) or io.compression(file):
            return None
        return io.cut(file, self.separator, size, rows)


@dataclass(frozen=True, kw_only=True)
class Text(FileReader):
    """Plain text, UTF-8."""

    split: Literal["blank_line", "file", "pattern"] = "blank_line"
    """What ends a document: a blank line, only the end of the file, or a line that
    ``pattern`` matches."""
    pattern: str | None = None
    """A regular expression. A line in which it is found separates two documents and belongs to
    neither, e.g. ``^={5,}$``."""

    suffixes = (".txt", ".text", ".md", ".rst")
    separator = BLANK_LINE

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if (self.split == "pattern") != (self.pattern is not None):
            yield Problem(
                f"{key}.pattern",
                self.pattern,
                f"{key}.split is {self.split}",
                f"give both {key}.split=pattern and {key}.pattern, or neither",
                also=(f"{key}.split",),
            )
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            yield Problem(
                f"{key}.pattern", self.pattern, f"is no regular expression: {error}", "fix it"
            )

    def parts(self, file: Path | str, size: int, rows: int) -> Iterator[ByteRange] | None:
        return super().parts(file, size, rows) if self.split == "blank_line" else None

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        ends = re.compile(self.pattern).search if self.pattern else None
        document: list[str] = []
        begun = size = 0
        bad: Rejected | None = None
        for number, line in self.lines(file):
            if isinstance(line, Rejected):
                bad, begun = bad or line, begun or number
                document.clear()
                continue
            ended = ends(line) if ends else self.split == "blank_line" and not line.strip()
            if ended or not (begun or line.strip()):
                if begun:
                    yield bad or Record(begun, "\n".join(document).rstrip("\n"))
                document.clear()
                begun, size, bad = 0, 0, None
                continue
            begun = begun or number
            size += len(line) + 1
            if size > self.longest and not bad:
                bad = Rejected(begun, f"longer than {self.longest:,} bytes")
            if bad:
                document.clear()
            else:
                document.append(line)
        if begun:
            yield bad or Record(begun, "\n".join(document).rstrip("\n"))


@dataclass(frozen=True, kw_only=True)
class Objects(FileReader):
    """Base of the readers of JSON objects.

    A file named ``*.json`` is one list of objects, or one object of lists, and is held in
    memory whole; any other is JSON Lines. JSON Lines under the name ``*.json`` are read line
    by line.
    """

    ignored_keys: tuple[str, ...] = ()
    """Keys of chats and their messages to ignore. Otherwise a record with a key that is not
    supported, or with an unknown key in a message, is rejected."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson", ".json")
    separator = io.LINE_END

    @abc.abstractmethod
    def document(self, entry: dict[str, Any]) -> Document:
        """What an object holds. Raises BadRecord."""

    def parts(self, file: Path | str, size: int, rows: int) -> Iterator[ByteRange] | None:
        named_json = io.plain_name(file).endswith(".json")
        return None if named_json else super().parts(file, size, rows)

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        for number, entry in json_objects(file, self.lines(file), self.longest):
            if isinstance(entry, Rejected):
                yield entry
                continue
            try:
                yield Record(number, self.document(entry))
            except BadRecord as error:
                yield Rejected(number, str(error))


@dataclass(frozen=True, kw_only=True)
class JSONL(Objects):
    """JSON Lines: one object a line."""

    field: str = "text"
    """The object's key that holds the document: a text, or a conversation as a list of
    ``{"role": …, "content": …}``. ``tools`` and ``system`` are other keys of the object."""

    suffixes: ClassVar[tuple[str, ...]] = (".jsonl", ".ndjson")

    def document(self, entry: dict[str, Any]) -> Document:
        return document_in(entry, self.field, self.ignored_keys)


@dataclass(frozen=True, kw_only=True)
class JSON(JSONL):
    """A JSON file: a list of objects, or an object of lists of equal length.

    The file is held in memory whole; JSON Lines is not.
    """

    suffixes = (".json",)


@dataclass(frozen=True, kw_only=True)
class OpenAI(Objects):
    """Chats as OpenAI's ``{"messages": [{"role": …, "content": …}, …]}``, with system and
    tool turns, ``tool_calls``, ``tools`` and ``weight``; also with the older
    ``function_call`` and ``functions``."""

    def document(self, entry: dict[str, Any]) -> Document:
        return beside.conversation(keyed(entry, "messages"), entry, self.ignored_keys)


@dataclass(frozen=True, kw_only=True)
class ShareGPT(Objects):
    """Chats as ShareGPT's ``{"conversations": [{"from": "human", "value": …}, …]}``, with an
    optional ``system`` and ``tools``. ``function_call`` and ``observation`` are speakers too."""

    def document(self, entry: dict[str, Any]) -> Document:
        return beside.conversation(keyed(entry, "conversations"), entry, self.ignored_keys)


@dataclass(frozen=True, kw_only=True)
class Alpaca(Objects):
    """Instructions as Alpaca's ``{"instruction": …, "input": …, "output": …}``, with an
    optional ``system`` and ``history`` of ``[question, answer]``.

    Instruction and input are joined by a line break where both are given.
    """

    def document(self, entry: dict[str, Any]) -> Document:
        question = text_in("instruction", keyed(entry, "instruction"))
        answer = text_in("output", keyed(entry, "output"))
        more = "" if entry.get("input") is None else text_in("input", entry["input"])
        history = [] if is_empty(entry.get("history")) else entry["history"]
        if not isinstance(history, list) or any(
            not isinstance(turn, list) or len(turn) != 2 for turn in history
        ):
            raise BadRecord("'history' is no list of [question, answer]")
        said = [text_in("history", text) for turn in history for text in turn]
        asked = "\n".join(text for text in (question, more) if text)
        return beside.conversation(turns_taken([*said, asked, answer]), entry, self.ignored_keys)


@dataclass(frozen=True, kw_only=True)
class Conversations(FileReader):
    """Conversations as tab-separated values: ``user<TAB>assistant<TAB>user<TAB>…``, one a line."""

    suffixes = (".tsv", ".txt")
    separator = io.LINE_END

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        for number, line in self.lines(file):
            if isinstance(line, Rejected):
                yield line
            elif line.strip():
                turns = line.split("\t")
                if len(turns) % 2:
                    yield Rejected(
                        number,
                        f"{len(turns)} tab-separated fields leave the last unanswered; user and "
                        "assistant take turns, so give an even number",
                    )
                else:
                    yield Record(number, turns_taken(turns))


@dataclass(frozen=True, kw_only=True)
class PythonDocs(Reader):
    """The language reference that CPython contains for ``help()``: half a megabyte of
    English, one document a topic. Needs no file and no network."""

    sample = True

    def files(self) -> list[Path]:
        found = find_spec("pydoc_data.topics")
        if found is None or found.origin is None:
            raise FileNotFoundError("this Python carries no module pydoc_data.topics")
        return [Path(found.origin)]

    def documents(self, file: Path) -> Iterator[str]:
        from pydoc_data.topics import topics

        for name in sorted(topics):
            yield topics[name].strip("\n")
