"""Results of batch inference: a journal that outlives a kill, then one file in order."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyllm import files
from easyllm.errors import UserError

FLUSH = 1.0
"""Seconds between flushes of the journal to the disk."""


class Journal:
    """What prompts have given so far, in the order in which they ended.

    It lies beside the output, ``.<name>.journal``: a line that says what the results are made
    from, then ``{"at": N, "results": [...]}`` for each prompt that is done. A line cut short
    by a kill is dropped. One process at a time may hold it.
    """

    def __init__(self, output: Path, made_from: str):
        self.output = output
        self.path = output.with_name(f".{output.name}.journal")
        output.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"inference.output={output}: another process is writing it; wait for it, or "
                "give another inference.output"
            ) from None
        self._places: dict[int, int] = {}
        self._flushed = 0.0
        if not self._read(made_from):
            self._places.clear()
            self._file.truncate(0)
            self._append({"made_from": made_from})

    def _read(self, made_from: str) -> bool:
        """Find what is done; False where the journal is of something else."""
        self._file.seek(0)
        whole = place = 0
        for number, line in enumerate(self._file):
            place, whole = whole, whole + len(line)
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None
            if number == 0:
                if entry != {"made_from": made_from}:
                    return False
            elif isinstance(entry, dict) and isinstance(entry.get("at"), int):
                self._places[entry["at"]] = place
            else:  # the last words of a killed process
                self._file.truncate(place)
                break
        return whole > 0

    def __contains__(self, at: int) -> bool:
        return at in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, at: int, results: list[dict[str, Any]]) -> None:
        """Note the results of prompt number ``at``."""
        self._places[at] = self._append({"at": at, "results": results})
        now = time.monotonic()
        if now - self._flushed > FLUSH:  # a killed process loses nothing, a dead machine this
            os.fsync(self._file.fileno())
            self._flushed = now

    def _append(self, entry: Mapping[str, Any]) -> int:
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        return place

    def results(self) -> Iterator[dict[str, Any]]:
        """All results, in the order of the prompts."""
        for at in sorted(self._places):
            self._file.seek(self._places[at])
            yield from json.loads(self._file.readline())["results"]

    def finish(self) -> None:
        """Write the output, whole or not at all, and remove the journal."""
        with files.new_file(self.output) as aside:
            if self.output.suffix == ".parquet":
                _write_parquet(aside, self.results())
            else:
                with aside.open("w", encoding="utf-8") as out:
                    for result in self.results():
                        out.write(json.dumps(result, ensure_ascii=False) + "\n")
        self.path.unlink()
        self.close()

    def close(self) -> None:
        self._file.close()


def _write_parquet(path: Path, results: Iterator[dict[str, Any]]) -> None:
    """Ids, conversations and log-probabilities, whose types vary, are kept as JSON text."""
    import itertools

    import pyarrow as pa
    import pyarrow.parquet as pq

    text, number = pa.string(), pa.int64()
    schema = pa.schema(
        {
            "id": text, "index": number, "prompt": text, "text": text, "finish_reason": text,
            "prompt_tokens": number, "completion_tokens": number, "logprobs": text,
            "error": text,
        }
    )  # fmt: skip
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(itertools.islice(results, 1024)):
            rows = [{name: _plain(schema, name, row.get(name)) for name in schema.names}
                    for row in batch]  # fmt: skip
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _plain(schema: Any, name: str, value: Any) -> Any:
    if value is None or isinstance(value, str) or schema.field(name).type == "int64":
        return value
    return json.dumps(value, ensure_ascii=False)
