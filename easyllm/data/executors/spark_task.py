"""What runs in a task of Spark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic

from easyllm.data.executors.pool import Item, Result
from easyllm.errors import UserError
from easyllm.files import write_json


class Task(Generic[Item, Result]):
    """A function whose UserError is written to a file that the driver reads.

    Spark returns the message of an exception only within the traces of three languages.
    """

    def __init__(self, function: Callable[[Item], Result], note: Path):
        self.function, self.note = function, note

    def __call__(self, item: Item) -> Result:
        with noted(self.note):
            return self.function(item)


@contextlib.contextmanager
def noted(note: Path) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        write_json(note, str(error))
        raise
