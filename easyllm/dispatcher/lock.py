"""Allows one running process in a run's directory."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from easyllm.files import try_lock


class Occupied(Exception):
    """Another process runs in the directory."""

    def __init__(self, process: str):
        super().__init__(process)
        self.process = process


@contextlib.contextmanager
def held(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Lock ``folder`` for this process. It is made if necessary, and removed again if it is still
    empty. Locks of other names do not exclude this one. Raises Occupied, which names the process
    that holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    with path.open("a+") as handle:
        if not try_lock(handle):
            handle.seek(0)
            raise Occupied(handle.read().strip() or "unknown")
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        try:
            yield
        finally:
            if [p.name for p in folder.iterdir()] == [path.name]:
                shutil.rmtree(folder, ignore_errors=True)
