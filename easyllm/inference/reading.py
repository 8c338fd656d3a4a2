"""Prompts of batch inference: from the spec, text, JSON Lines or parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.data import inputs
from easyllm.errors import UserError
from easyllm.inference.prompts import turn
from easyllm.spec.roles import Rejected
from easyllm.spec.run import RunSpec

LONGEST = 1 << 26
"""Bytes of a prompt's line at most."""
FIELDS = ("messages", "prompt", "text")
"""Where a record holds its prompt; the first that is there counts."""


@dataclass(frozen=True)
class Prompt:
    id: str | int
    """Its name in the spec, ``id`` in its record, or its line or row from 1."""
    asked: str | list[dict[str, Any]]
    """A text to go on with, or a conversation to answer."""
    error: str | None = None
    """Why it cannot be used; ``asked`` is empty then."""


def read_prompts(run: RunSpec) -> Iterator[Prompt]:
    """The prompts of ``inference.prompts``, in order; blank lines are passed over.

    Raises UserError where the file cannot be read. A bad record is given with its error.
    """
    given = run.inference.prompts
    if not isinstance(given, str):
        for name, text in given.items():
            yield Prompt(name, text)
        return
    name = inputs.plain_name(given)
    if name.endswith(".parquet"):
        yield from _parquet(given)
        return
    records = name.endswith((".jsonl", ".ndjson", ".json"))
    file: Path | str = given if inputs.is_url(given) else Path(given)
    if isinstance(file, Path) and not file.is_file():
        raise UserError(
            f"inference.prompts={given}: no such file; give a text file with one prompt a line, "
            "or .jsonl or .parquet"
        )
    for number, line in inputs.lines(file, LONGEST):
        if isinstance(line, Rejected):
            yield Prompt(number, "", line.reason)
        elif line.strip():
            yield _json(line, number) if records else Prompt(number, line)


def _json(line: str, number: int) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Prompt(number, "", f"not JSON: {error}")
    return _prompt(record, number)


def _prompt(record: object, number: int) -> Prompt:
    """A record's prompt: a text, a list of messages, or a map that holds one of them."""
    id_: Any = number
    if isinstance(record, Mapping):
        found = record.get("id")
        if isinstance(found, str | int) and not isinstance(found, bool):
            id_ = found
        field = next((name for name in FIELDS if record.get(name) is not None), None)
        if field is None:
            return Prompt(id_, "", f"has none of {', '.join(FIELDS)}")
        record = record[field]
    if isinstance(record, str):
        return Prompt(id_, record)
    if isinstance(record, list) and record:
        try:
            return Prompt(id_, [turn(message) for message in record])
        except UserError as error:
            return Prompt(id_, "", str(error))
    return Prompt(id_, "", "its prompt is neither a text nor a list of messages")


def _parquet(path: str) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with inputs.opened_raw(path if inputs.is_url(path) else Path(path)) as raw:
            table = pq.ParquetFile(raw)
            wanted = [name for name in ("id", *FIELDS) if name in table.schema_arrow.names]
            if not set(wanted) & set(FIELDS):
                raise UserError(
                    f"inference.prompts={path}: has no column {' or '.join(FIELDS)}, but "
                    f"{', '.join(table.schema_arrow.names)}"
                )
            number = 0
            for batch in table.iter_batches(batch_size=1024, columns=wanted):
                for record in batch.to_pylist():
                    number += 1
                    yield _prompt(record, number)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"inference.prompts={path}: cannot be read: {error}") from None
