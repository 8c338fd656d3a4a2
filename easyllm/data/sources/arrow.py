"""Rows of arrow's tables as Python's values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from easyllm.data.chat.values import parsed
from easyllm.errors import BadRecord
from easyllm.spec.roles import Rejected

Read = Callable[[Any], Any]
"""Converts what arrow's ``as_py`` gives into the value that is meant."""


def rows(
    batches: Iterable[Any], names: Sequence[str], number: int = 0
) -> Iterator[tuple[int, dict[str, Any] | Rejected]]:
    """The rows of ``pyarrow.RecordBatch``es by number, counted on from ``number``, with the
    columns ``names``; ``Rejected`` in place of one with a value that Python has no type for.

    Arrow gives each object the keys of all others of its column, as null. They are left out,
    and so is a null that was given, because the two cannot be distinguished. A value of arrow's
    JSON type is parsed and keeps its nulls.
    """
    for batch in batches:
        columns = [(name, batch.column(name)) for name in names]
        readers = [_reader(column.type) for _, column in columns]
        for place in range(batch.num_rows):
            number += 1
            yield number, _row(number, place, columns, readers)


def _row(
    number: int, place: int, columns: Sequence[tuple[str, Any]], readers: Sequence[Read | None]
) -> dict[str, Any] | Rejected:
    found = {}
    for (name, column), read in zip(columns, readers, strict=True):
        try:
            value = column[place].as_py()
            found[name] = value if read is None or value is None else read(value)
        except UnicodeDecodeError as error:
            return Rejected(number, f"{name!r} is not UTF-8: {error.reason}")
        except BadRecord as error:
            return Rejected(number, f"{name!r} is {error}")
        # such as a date after the year 9999, or a time zone that this machine does not know
        except (ValueError, ArithmeticError, KeyError) as error:
            return Rejected(number, f"{name!r} holds what Python has no type for: {error}")
    return found


def _reader(type_: Any) -> Read | None:
    """None where arrow's value needs no conversion."""
    import pyarrow as pa

    if isinstance(type_, pa.BaseExtensionType):
        return parsed if type_.extension_name == "arrow.json" else None
    if pa.types.is_map(type_):
        return dict
    if pa.types.is_struct(type_):
        fields = {field.name: _reader(field.type) or _same for field in type_}
        return lambda value: {k: fields[k](v) for k, v in value.items() if v is not None}
    if hasattr(type_, "value_type") and (item := _reader(type_.value_type)):
        return lambda value: [None if v is None else item(v) for v in value]
    return None


def _same(value: Any) -> Any:
    return value
