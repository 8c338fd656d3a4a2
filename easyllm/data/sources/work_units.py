"""Cuts the sources into units of work for the processes that tokenize."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyllm.data.sources import io
from easyllm.data.sources.legacy_store import TokenStore
from easyllm.data.store import token_files
from easyllm.errors import UserError
from easyllm.files import fingerprint, stable_hash
from easyllm.spec.roles import ByteRange, File, Reader, Record, Rejected
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

CHUNK = 1 << 23, 1 << 24
"""Bytes of text, or of a file read in parts, that become a parquet file: at least, at most."""

CHUNKS = 128
"""About how many files a source becomes within these bounds: enough that no process waits long
for the last one, and no more than are useful."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive records of one input file, which become one parquet file.

    They are already read, or the process that encodes them reads them.
    """

    source: str
    path: str
    file: File
    records: list[Record | Rejected] = field(default_factory=list)
    reader: Reader | None = None
    """Reads ``file``, where the records are not read yet."""
    limit: int | None = None
    """Documents to take at most from a file of tokens."""
    first: bool = False
    """Whether it is its source's first."""

    def identity(self) -> Any:
        """Plain data that differs where the records do."""
        if self.reader is None:
            return stable_hash([dataclasses.asdict(record) for record in self.records])
        part = self.file if isinstance(self.file, ByteRange) else None
        file = part.file if part else self.file
        assert isinstance(file, Path), "only local files are left to be read"
        span = [part.start, part.end, part.line] if part else None
        return [write(self.reader), str(file), fingerprint(file), span, self.limit]

    def read(self) -> list[Record | Rejected]:
        if self.reader is None:
            return self.records
        return list(checked(self.reader, self.file))


def files(name: str, reader: Reader) -> Sequence[Path | str]:
    """A source's files. Raises UserError where there are none."""
    try:
        return reader.files()
    except FileNotFoundError as error:
        raise UserError(f"data.sources.{name}: {error}; give data.sources.{name}.path") from None


def chunks(run: RunSpec) -> Iterator[Chunk]:
    """All of the run's sources; the cuts depend only on the files and the settings."""
    begun = None
    for chunk in _chunks(run):
        yield dataclasses.replace(chunk, first=chunk.source != begun)
        begun = chunk.source


def _chunks(run: RunSpec) -> Iterator[Chunk]:
    rows = run.data.rows_per_file
    for name, reader in sorted(run.data.sources.items()):
        left = run.data.max_documents
        found = files(name, reader)
        size = sorted((CHUNK[0], sum(map(io.size, found)) // CHUNKS, CHUNK[1]))[1]
        for number, file in enumerate(found):
            stem = f"{name}-part-{number:02}"
            folder = f"{name}_{run.data.tokenizer.label(run)}/{stem}"
            paths = (
                f"{folder}/{token_files.file_name(stem, part, run.data.compression)}"
                for part in itertools.count()
            )
            if isinstance(reader, TokenStore):
                assert isinstance(file, Path)  # its files are local
                yield Chunk(name, next(paths), file, reader=reader, limit=left)
                left = None if left is None else max(0, left - reader.rows(file))
                if left == 0:
                    break
                continue
            # a limit has to count the documents one after another
            parts = reader.parts(file, size, rows) if left is None else None
            if parts is not None:
                for part in parts:
                    yield Chunk(name, next(paths), part, reader=reader)
                continue
            for records in _cut(reader, file, size, rows, left, run.data.max_bad_records):
                yield Chunk(name, next(paths), file, records)
                if left is not None:
                    left -= sum(isinstance(record, Record) for record in records)
            if left == 0:
                break


def _cut(
    reader: Reader, file: File, size: int, rows: int, limit: int | None, rejects: int
) -> Iterator[list[Record | Rejected]]:
    """The records of a file, at most ``limit`` documents."""
    part: list[Record | Rejected] = []
    held = documents = bad = 0
    read = checked(reader, file)
    while limit != 0 and (record := next(read, None)):
        part.append(record)
        if isinstance(record, Rejected):
            bad += 1
        else:
            held += record.size
            documents += 1
            limit = None if limit is None else limit - 1
        # with more rejects than are allowed the stage stops when it sees them
        if documents == rows or held >= size or bad > rejects:
            yield part
            part, held, documents, bad = [], 0, 0, 0
    if part:
        yield part


def checked(reader: Reader, file: File) -> Iterator[Record | Rejected]:
    """The records of a file that are not empty; those without valid text are rejected."""
    place = 0
    for found in reader.documents(file):
        place += 1
        record = found if isinstance(found, Record | Rejected) else Record(place, found)
        if isinstance(record, Record):
            if not record.document:
                continue
            try:
                _ = record.size
            except UnicodeEncodeError:
                record = Rejected(record.line, "holds half of a surrogate pair")
        yield record


def shown(rejected: list[dict[str, Any]]) -> str:
    """The first few rejected records, a line each."""
    lines = [f"  {r['file']}, line {r['line']}: {r['reason']}" for r in rejected[:5]]
    return "\n".join(lines)
