"""Readers of tables: documents in a column of CSV, TSV, parquet or a data set."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from easyllm.data import inputs
from easyllm.data.readers import FileReader
from easyllm.data.records import document_in
from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import File, Reader, Record, Rejected
from easyllm.spec.types import ModelPath, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class CSV(FileReader):
    """Comma-separated values with a header; fields in double quotes may span lines."""

    column: str = "text"
    """The column that holds the documents, by its name in the header."""

    suffixes = (".csv",)
    delimiter: ClassVar[str] = ","

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        bad: list[Rejected] = []
        begun = 0

        def texts() -> Iterator[str]:
            for _, line in self.lines(file):
                if isinstance(line, Rejected):
                    bad.append(line)
                    yield "\n"  # an empty row in its place
                else:
                    yield line + "\n"

        csv.field_size_limit(max(csv.field_size_limit(), self.longest))
        rows = csv.reader(texts(), delimiter=self.delimiter)
        header: list[str] | None = None
        while True:
            begun = rows.line_num + 1
            try:
                row = next(rows)
            except StopIteration:
                yield from bad
                return
            except csv.Error as error:
                yield Rejected(begun, f"not CSV: {error}")
                continue
            if bad:
                yield bad[0]
                bad.clear()
            elif not row:
                continue
            elif header is None:
                header = row
                if self.column not in header:
                    raise UserError(
                        f"{file}: its header has no column {self.column!r}, but "
                        f"{', '.join(header)}; give the reader's column the right name"
                    )
            elif len(row) != len(header):
                yield Rejected(begun, f"{len(row)} fields, the header has {len(header)}")
            elif len(text := row[header.index(self.column)]) > self.longest:
                yield Rejected(begun, f"longer than {self.longest:,} bytes")
            else:
                yield Record(begun, text)


@dataclass(frozen=True, kw_only=True)
class TSV(CSV):
    """Tab-separated values with a header; otherwise as CSV."""

    suffixes = (".tsv",)
    delimiter = "\t"


@dataclass(frozen=True, kw_only=True)
class Parquet(FileReader):
    """A column of parquet files, read batch by batch: texts, or conversations as lists of
    ``{"role": …, "content": …}``."""

    column: str = "text"
    """The column that holds the documents."""

    suffixes = (".parquet",)

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        try:
            with inputs.opened_raw(_whole(file)) as raw:
                table = pq.ParquetFile(raw)
                names = table.schema_arrow.names
                if self.column not in names:
                    raise UserError(
                        f"{file} has no column {self.column!r}, but {', '.join(names)}; give the "
                        "reader's column the right name"
                    )
                for batch in table.iter_batches(batch_size=256, columns=[self.column]):
                    for value in batch.column(0):
                        row += 1
                        yield self._record(row, value)
        except (OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0]
            yield Rejected(row + 1, f"the file is cut short or damaged from here on: {first}")

    def _record(self, row: int, value: Any) -> Record | Rejected:
        try:
            found = _plain(value.as_py())
        except UnicodeDecodeError as error:
            return Rejected(row, f"not UTF-8: {error.reason}")
        return _document(row, {self.column: found}, self.column, self.longest)


def _whole(file: File) -> Path | str:
    assert isinstance(file, Path | str)
    return file


def _plain(value: Any) -> Any:
    """Without the nulls that arrow gives each message for keys that others have."""
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if v is not None}
    return value


def _document(row: int, entry: dict[str, Any], key: str, longest: int) -> Record | Rejected:
    try:
        document = document_in(entry, key)
    except BadRecord as error:
        return Rejected(row, str(error))
    if isinstance(document, str) and len(document) > longest:
        return Rejected(row, f"longer than {longest:,} bytes")
    return Record(row, document)


BUILDERS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
"""The builder of ``datasets`` for a file's suffix."""


@dataclass(frozen=True, kw_only=True)
class HFDatasets(Reader):
    """Anything that the ``datasets`` library opens, streamed: a data set on the hub, a folder
    that ``save_to_disk`` wrote, or local files of its formats."""

    path: ModelPath
    """A hub id, a folder or a file."""
    builder: str | None = None
    """Builder of local files (json, csv, parquet, arrow, text, …); by their suffix when null."""
    config: str | None = None
    """The configuration (subset) of a data set on the hub."""
    split: str = "train"
    """The split of a data set on the hub or a saved one; local files have none."""
    revision: str | None = None
    """Commit or tag of a data set on the hub; give it, so that the same run reads the same."""
    field: str = "text"
    """The column that holds the document: a text, or a conversation as a list of
    ``{"role": …, "content": …}``."""
    max_record_mb: PositiveFloat = 64.0
    """Longest text in MB; a longer one is rejected."""

    requires = {"datasets": "datasets"}  # noqa: RUF012  (a constant of the class)

    def files(self) -> list[Path | str]:
        place = Path(self.path).expanduser()
        if not place.exists():
            if self.path.startswith(("/", ".", "~")):
                raise FileNotFoundError(f"no such file or folder: {self.path}")
            return [f"hf://datasets/{self.path}" + (f"@{self.revision}" if self.revision else "")]
        if place.is_dir() and _saved(place):
            return [_saved(place)[0]]
        suffixes = tuple(BUILDERS) if self.builder is None else ("",)
        return inputs.find(self.path, suffixes)

    def documents(self, file: Path | str) -> Iterator[Record | Rejected]:
        import datasets

        try:
            rows = self._open(file)
            names = getattr(rows, "column_names", None)
            if names and self.field not in names:
                raise UserError(
                    f"{self.path} has no column {self.field!r}, but {', '.join(names)}; give "
                    "the reader's field the right name"
                )
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UserError(f"{self.path} cannot be opened by datasets: {error}") from None
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                yield _document(number, _plain(row), self.field, int(self.max_record_mb * 1e6))
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            yield Rejected(number + 1, f"datasets cannot read on from here: {error}")

    def _open(self, file: Path | str) -> Any:
        import datasets

        if isinstance(file, str):
            return datasets.load_dataset(
                self.path, self.config, split=self.split, revision=self.revision, streaming=True
            )
        if file.name in SAVED:
            found = datasets.load_from_disk(str(file.parent))
            if isinstance(found, datasets.DatasetDict):
                if self.split not in found:
                    raise ValueError(f"it has no split {self.split!r}, but {', '.join(found)}")
                found = found[self.split]
            return found.to_iterable_dataset()
        suffix = Path(inputs.plain_name(file)).suffix
        builder = self.builder or BUILDERS.get(suffix)
        if builder is None:
            raise ValueError(f"nothing is known of {suffix} files; give the reader's builder")
        return datasets.load_dataset(builder, data_files=[str(file)], split="train", streaming=True)


SAVED = ("dataset_dict.json", "state.json")
"""What ``save_to_disk`` writes into a folder; one of them."""


def _saved(folder: Path) -> list[Path]:
    return [folder / name for name in SAVED if (folder / name).is_file()]
