"""Rows of parquet files as Python's values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from easyllm.data.chat.values import without_nulls
from easyllm.spec.roles import Rejected


def rows(table: Any, names: Sequence[str]) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """The rows of a ``pyarrow.parquet.ParquetFile`` by number from 1, with the columns
    ``names``; ``Rejected`` in place of one with a value that Python has no type for.

    Arrow gives each object the keys of all others of its column, as null; they are left out.
    Raises pyarrow.ArrowException or OSError where the file is damaged.
    """
    number = 0
    for batch in table.iter_batches(batch_size=256, columns=list(names)):
        columns = [batch.column(name) for name in names]
        for place in range(batch.num_rows):
            number += 1
            yield number, _row(number, {n: c[place] for n, c in zip(names, columns, strict=True)})


def _row(number: int, values: dict[str, Any]) -> dict[str, Any] | Rejected:
    found = {}
    for name, value in values.items():
        try:
            found[name] = without_nulls(value.as_py())
        except UnicodeDecodeError as error:
            return Rejected(number, f"{name!r} is not UTF-8: {error.reason}")
        # a date after the year 9999, say, or a time zone that this machine does not know
        except (ValueError, ArithmeticError, KeyError) as error:
            return Rejected(number, f"{name!r} holds what Python has no type for: {error}")
    return found
