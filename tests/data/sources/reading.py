"""What the tests of readers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easyllm.data.sources.work_units import checked
from easyllm.spec.roles import Reader, Rejected

QA = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def read(reader: Reader) -> tuple[list[Any], list[tuple[int, str]]]:
    """The documents of all files of a reader, and line and reason of what is rejected."""
    good, bad = [], []
    for file in reader.files():
        for record in checked(reader, file):
            if isinstance(record, Rejected):
                bad.append((record.line, record.reason))
            else:
                good.append(record.document)
    return good, bad
