"""Prompts of batch inference: from the spec, text, JSON or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.data.chat import beside
from easyllm.data.chat.values import is_empty, kind
from easyllm.data.sources import arrow, io
from easyllm.data.sources.records import json_values
from easyllm.errors import UserError
from easyllm.inference import request_params
from easyllm.inference.prompts import conversation
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.roles import Rejected
from easyllm.spec.run import RunSpec

LONGEST = 1 << 26
"""Bytes of a prompt's line at most."""
FIELDS = ("messages", "prompt", "text")
"""Where a record holds its prompt; the first that is there counts."""
REQUEST = ("custom_id", "method", "url", "body")
"""Keys of a line of OpenAI's batch files."""
KEYS = (*FIELDS, *REQUEST, *beside.KEYS, *request_params.NAMES, *request_params.NOT_TAKEN_UP)
"""Keys of a record, and columns of a parquet file, that are read besides ``id``."""


@dataclass(frozen=True)
class Prompt:
    id: str | int
    """Its name in the spec, ``id`` in its record, or its line or row from 1."""
    content: str | list[dict[str, Any]]
    """A text to continue, or a conversation to answer."""
    sampling: SamplingSpec
    """The run's, overridden by the record's fields."""
    error: str | None = None
    """Why it cannot be used; ``content`` is then empty."""


def read_prompts(run: RunSpec) -> Iterator[Prompt]:
    """The prompts of ``inference.prompts``, in order; blank lines are skipped.

    Raises UserError where the file cannot be read. A bad record is given with its error.
    """
    given, default = run.inference.prompts, run.inference.sampling
    if not isinstance(given, str):
        for name, text in given.items():
            yield Prompt(name, text, default)
        return
    name = io.plain_name(given)
    if name.endswith(".parquet"):
        yield from _parquet(given, default)
        return
    file: Path | str = given if io.is_url(given) else Path(given)
    if isinstance(file, Path) and not file.is_file():
        raise UserError(
            f"inference.prompts={given}: no such file; give a text file with one prompt a line, "
            "or .jsonl, .json or .parquet"
        )
    lines = io.lines(file, LONGEST)
    if name.endswith((".jsonl", ".ndjson", ".json")):
        for number, value in json_values(file, lines, LONGEST):
            yield _prompt(value, number, default)
        return
    for number, line in lines:
        if isinstance(line, Rejected) or line.strip():
            yield _prompt(line, number, default)


def _prompt(record: object, number: int, default: SamplingSpec) -> Prompt:
    """A record's prompt: a text, a list of messages, or a map that holds one of them."""
    id_: Any = number
    if isinstance(record, Rejected):
        return Prompt(id_, "", default, record.reason)
    if isinstance(record, Mapping):
        named = record.get("custom_id") if "body" in record else record.get("id")
        if isinstance(named, str | int) and not isinstance(named, bool):
            id_ = named
    try:
        return Prompt(id_, *_read(record, default))
    except UserError as error:
        return Prompt(id_, "", default, str(error))


def _read(record: object, default: SamplingSpec) -> tuple[str | list[dict[str, Any]], SamplingSpec]:
    """The prompt of a record, and its sampling. Raises UserError."""
    given: Mapping[str, Any] = record if isinstance(record, Mapping) else {"prompt": record}
    if isinstance(given.get("body"), Mapping) and given.keys() & {"custom_id", "url"}:
        given = _request(given)
    field = next((name for name in FIELDS if given.get(name) is not None), None)
    if field is None:
        raise UserError(f"has none of {', '.join(FIELDS)}")
    prompt, sampling = given[field], request_params.sampling(given, default)
    if isinstance(prompt, list):
        return conversation(prompt, request_params.without_tools(given)), sampling
    if not isinstance(prompt, str):
        raise UserError(f"its prompt is {kind(prompt)}, neither a text nor a list of messages")
    for key in beside.KEYS:
        if not is_empty(given.get(key)):
            raise UserError(f"{key!r} is given with a text; give 'messages' instead of the text")
    return prompt, sampling


def _request(record: Mapping[str, Any]) -> Mapping[str, Any]:
    body = request_params.request(record)
    for key, value in body.items():
        if key not in KEYS and key not in request_params.WITHOUT_EFFECT and not is_empty(value):
            raise UserError(
                f"the body has {key!r}, which batch inference does not offer; remove it"
            )
    return body


def _parquet(path: str, default: SamplingSpec) -> Iterator[Prompt]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with io.opened_raw(path if io.is_url(path) else Path(path)) as raw:
            table = pq.ParquetFile(raw)
            names = table.schema_arrow.names
            wanted = [name for name in ("id", *KEYS) if name in names]
            if not set(wanted) & {*FIELDS, "body"}:
                raise UserError(
                    f"inference.prompts={path}: has no column {' or '.join(FIELDS)}, but "
                    f"{', '.join(names)}"
                )
            for number, record in arrow.rows(table.iter_batches(256, columns=wanted), wanted):
                yield _prompt(record, number, default)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"inference.prompts={path}: cannot be read: {error}") from None
