"""Compares a converted tokenizer with the library that its vocabulary was published for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from easyllm.data.sources.legacy_store import TokenStore
from easyllm.data.sources.work_units import checked
from easyllm.data.tokenizers.backends import HuggingFace, joined, version
from easyllm.data.tokenizers.select_backend import OWN, difference
from easyllm.errors import UserError
from easyllm.spec.roles import Reader, Record
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from easyllm.data.tokenizers.backends import Encode

Rows = Callable[[list[str]], list[list[int]]]
"""Ids of each text, by an original library."""

AT_ONCE = 1 << 16
"""Number of texts whose ids are held at once."""

REMEDY = (
    "give data.tokenizer.path=<a folder with the tokenizer.json that the model was trained with>"
)


def check(
    file: Path, folder: Path, package: str, original: Rows, texts: Iterator[str], why: str = ""
) -> None:
    """Raises UserError where the tokenizer in ``folder``, converted from ``file``, has other ids.

    The error shows the text, its ids and those that ``package`` gives, and ``why`` where that is
    known.
    """
    found = differs(folder, package, original, texts)
    if found:
        raise UserError(
            f"{file} cannot be converted so that its ids stay the same: {found}{why}; {REMEDY}"
        )


def differs(folder: Path, package: str, original: Rows, texts: Iterator[str]) -> str | None:
    """Where the ids of the ``tokenizer.json`` in ``folder`` differ from those of ``package``."""
    converted = HuggingFace().load(folder)
    names = ("its tokenizer.json", f"{package} {version(package)}")
    while batch := list(itertools.islice(texts, AT_ONCE)):
        why = difference(_encode(original), converted, batch, names)
        if why:
            return why
    return None


def first_documents(run: RunSpec) -> Iterator[str]:
    """The first texts of each of the run's sources; for conversations, their messages."""
    for _, reader in sorted(run.data.sources.items()):
        if isinstance(reader, TokenStore):
            continue
        size = 0
        for text in _texts(reader):
            yield text[: OWN - size]
            size += len(text)
            if size >= OWN:
                break


def _texts(reader: Reader) -> Iterator[str]:
    for file in reader.files():
        for record in checked(reader, file):
            if not isinstance(record, Record):
                continue
            if isinstance(record.document, str):
                yield record.document
            else:
                contents = (message.get("content") for message in record.document)
                yield from (text for text in contents if isinstance(text, str))


def _encode(original: Rows) -> Encode:
    return lambda texts: joined(original(texts))
