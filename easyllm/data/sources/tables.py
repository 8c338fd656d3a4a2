"""Readers of tables: documents in a column of CSV, TSV, parquet or a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from easyllm.data.chat import beside
from easyllm.data.sources import arrow, delimited, io
from easyllm.data.sources.readers import FileReader
from easyllm.data.sources.records import document_in
from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import File, Reader, Record, Rejected
from easyllm.spec.types import ModelPath, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class CSV(FileReader):
    """Comma-separated values with a header; fields in double quotes may span lines."""

    column: str = "text"
    """The column that holds the documents, by its name in the header."""

    quotes: bool = True
    """Whether a field may be in double quotes; with false they are plain characters, so that
    each line is a record."""

    suffixes = (".csv",)
    delimiter: ClassVar[str] = ","

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        lines = io.byte_lines(file, self.longest)
        rows = delimited.Rows(lines, self.delimiter, self.quotes, self.longest)
        place = 0
        for row in rows:
            if rows.width is None:
                if row is rows.damage:
                    yield row
                    return
                header = self._header(file, row)
                rows.width, place = len(header), header.index(self.column)
            elif isinstance(row, Rejected):
                yield row
            else:
                yield Record(row.line, row.fields[place])

    def _header(self, file: File, row: delimited.Row | Rejected) -> list[str]:
        """The columns' names. Raises UserError where they do not show which column to read: then
        no record of the file can be read."""
        if isinstance(row, Rejected):
            raise UserError(
                f"{file}: its header, line {row.line}, cannot be read: {row.reason}; fix that line"
            )
        found = row.fields.count(self.column)
        if found == 1:
            return row.fields
        matter = f"has {found} columns" if found else "has no column"
        raise UserError(
            f"{file}: its header {matter} {self.column!r}"
            f"{'' if found else ', but ' + ', '.join(row.fields)}; "
            + (
                "give all but one another name"
                if found
                else "give the reader's column the right name"
            )
        )


@dataclass(frozen=True, kw_only=True)
class TSV(CSV):
    """Tab-separated values with a header; otherwise as CSV."""

    suffixes = (".tsv",)
    delimiter = "\t"


@dataclass(frozen=True, kw_only=True)
class Parquet(FileReader):
    """A column of parquet files, read batch by batch: texts, or conversations as lists of
    ``{"role": …, "content": …}``, with columns such as ``tools`` and ``system`` beside them.

    Parquet gives each object of a column the keys of all others, as null; they are left out.
    A null that a tool's call is to keep can be distinguished from these only where ``arguments`` is
    JSON text.
    """

    column: str = "text"
    """The column that holds the documents."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of chats and their messages to ignore. Otherwise a record with a key that is not
    supported, or with an unknown key in a message, is rejected."""

    suffixes = (".parquet",)

    def documents(self, file: File) -> Iterator[Record | Rejected]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number = 0
        try:
            with io.opened_raw(_whole(file)) as raw:
                table = pq.ParquetFile(raw)
                names = _columns(file, table.schema_arrow, self.column, "column")
                for number, row in arrow.rows(table.iter_batches(256, columns=names), names):
                    if isinstance(row, Rejected):
                        yield row
                    else:
                        yield _document(number, row, self.column, self.longest, self.ignored_keys)
        except (OSError, pa.ArrowException) as error:
            first = str(error).splitlines()[0]
            yield Rejected(number + 1, f"the file is cut short or damaged from here on: {first}")


def _columns(file: File, schema: Any, wanted: str, reader_key: str) -> list[str]:
    """The columns to read: the one that is ``wanted`` and, where it holds conversations, those
    that have a meaning for them. Raises UserError where the names do not show which."""
    import pyarrow as pa

    names: list[str] = schema.names
    if wanted not in names:
        raise UserError(
            f"{file} has no column {wanted!r}, but {', '.join(names)}; give the reader's "
            f"{reader_key} the right name"
        )
    found = [wanted]
    type_ = schema.types[names.index(wanted)]
    if not (pa.types.is_string(type_) or pa.types.is_large_string(type_)):
        found += [name for name in beside.KEYS if name in names and name != wanted]
    if twice := next((name for name in found if names.count(name) > 1), None):
        raise UserError(f"{file} has {names.count(twice)} columns {twice!r}; rename all but one")
    return found


def _whole(file: File) -> Path | str:
    assert isinstance(file, Path | str)
    return file


def _document(
    row: int, entry: dict[str, Any], key: str, longest: int, ignored: tuple[str, ...]
) -> Record | Rejected:
    try:
        document = document_in(entry, key, ignored)
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
    """Commit or tag of a data set on the hub; give it, so that the same run reads the same data."""
    field: str = "text"
    """The column that holds the document: a text, or a conversation as a list of
    ``{"role": …, "content": …}``."""
    max_record_mb: PositiveFloat = 64.0
    """Longest text in MB; a longer one is rejected."""
    ignored_keys: tuple[str, ...] = ()
    """Keys of chats and their messages to ignore, as in ``Parquet``."""

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
        return io.find(self.path, suffixes)

    def documents(self, file: Path | str) -> Iterator[Record | Rejected]:
        import datasets
        import pyarrow as pa

        failures = (OSError, ValueError, ArithmeticError, KeyError, pa.ArrowException,
                    datasets.exceptions.DatasetsError)  # fmt: skip
        try:
            # tables: a value that Python has no type for then costs its own row only
            tables = self._open(file).with_format("arrow").iter(256)
        except failures as error:
            raise UserError(f"{self.path} cannot be opened by datasets: {error}") from None
        number, longest = 0, int(self.max_record_mb * 1e6)
        try:
            for table in tables:
                names = _columns(self.path, table.schema, self.field, "field")
                rows = arrow.rows(table.to_batches(), names, number)
                for number, row in rows:
                    if isinstance(row, Rejected):
                        yield row
                    else:
                        yield _document(number, row, self.field, longest, self.ignored_keys)
        except failures as error:
            yield Rejected(number + 1, f"datasets cannot continue from here: {error}")

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
        suffix = Path(io.plain_name(file)).suffix
        builder = self.builder or BUILDERS.get(suffix)
        if builder is None:
            raise ValueError(f"{suffix} files are not known; give the reader's builder")
        return datasets.load_dataset(builder, data_files=[str(file)], split="train", streaming=True)


SAVED = ("dataset_dict.json", "state.json")
"""``save_to_disk`` writes one of these into a folder."""


def _saved(folder: Path) -> list[Path]:
    return [folder / name for name in SAVED if (folder / name).is_file()]
