"""Results of batch inference: a journal that a kill does not destroy, then one file in order."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyllm import files
from easyllm.errors import UserError

FLUSH = 1.0
"""Seconds between flushes of the journal to the disk."""


class Journal:
    """The results of prompts so far, in the order in which they ended.

    The file is beside the output, ``.<name>.journal``: a line that says what the results are made
    from, then ``{"at": N, "results": [...]}`` for each prompt that is done, each with a
    checksum. A line cut short by a kill is dropped. A damaged one is reported and dropped: its
    prompt is answered again. One process at a time may hold the journal.

    When it is finished, ``.<name>.done`` says what the output was made from and holds its hash.
    """

    def __init__(self, output: Path, made_from: str):
        self.output = output
        self.path = output.with_name(f".{output.name}.journal")
        output.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        if not files.try_lock(self._file):
            self._file.close()
            raise UserError(
                f"inference.output={output}: another process is writing it; wait for it, or "
                "give another inference.output"
            )
        self._made_from = made_from
        self._places: dict[int, int] = {}
        self._flushed = 0.0
        if not self._read(made_from):
            self._places.clear()
            self._file.truncate(0)
            self._append({"made_from": made_from})

    def _read(self, made_from: str) -> bool:
        """Find the prompts that are done; False where the journal was made from something else."""
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file):
            place, end = end, end + len(line)
            if not line.endswith(b"\n"):  # a killed process has not finished this line
                self._file.truncate(place)
                return number > 0
            try:
                entry = files.read_json_line(line.decode())
                if number:
                    self._places[int(entry["at"])] = place
            except (ValueError, KeyError, TypeError):
                lost = "it is answered again" if number else "all prompts are answered again"
                print(f"{self.path}, line {number + 1}: is damaged; {lost}", file=sys.stderr)
                if not number:
                    return False
                continue
            if number == 0 and entry != {"made_from": made_from}:
                return False
        return end > 0

    def __contains__(self, at: int) -> bool:
        return at in self._places

    def __len__(self) -> int:
        return len(self._places)

    def add(self, at: int, results: list[dict[str, Any]]) -> None:
        """Note the results of prompt number ``at``."""
        self._places[at] = self._append({"at": at, "results": results})
        now = time.monotonic()
        # a killed process loses nothing, a machine that goes down at most these seconds
        if now - self._flushed > FLUSH:
            os.fsync(self._file.fileno())
            self._flushed = now

    def _append(self, entry: Mapping[str, Any]) -> int:
        place = self._file.seek(0, os.SEEK_END)
        self._file.write(files.json_line(entry).encode() + b"\n")
        self._file.flush()
        return place

    def results(self) -> Iterator[dict[str, Any]]:
        """All results, in the order of the prompts."""
        for at in sorted(self._places):
            self._file.seek(self._places[at])
            yield from files.read_json_line(self._file.readline().decode())["results"]

    def finish(self, counts: Mapping[str, Any]) -> None:
        """Write the output, whole or not at all, record that it is whole, with ``counts`` of its
        content, and remove the journal."""
        with files.atomic_write(self.output) as temporary:
            if self.output.suffix == ".parquet":
                _write_parquet(temporary, self.results())
            else:
                with temporary.open("w", encoding="utf-8") as out:
                    for result in self.results():
                        out.write(json.dumps(result, ensure_ascii=False) + "\n")
        done = {"made_from": self._made_from, "sha256": files.sha256(self.output)}
        files.write_record(_done(self.output), {**done, "counts": counts})
        self.path.unlink()
        self.close()

    def close(self) -> None:
        self._file.close()


def finished(output: Path, made_from: str) -> dict[str, Any] | None:
    """The counts of an output that is whole and made from the same; None where it is not."""
    try:
        done = files.read_record(_done(output))
        if done["made_from"] == made_from and done["sha256"] == files.sha256(output):
            return dict(done["counts"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _done(output: Path) -> Path:
    return output.with_name(f".{output.name}.done")


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
