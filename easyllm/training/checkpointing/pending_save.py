"""A checkpoint that is being written. All ranks write into one temporary folder, which gets its
name when all have written."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError

from easyllm.errors import UserError
from easyllm.files import AtomicDir, flush, removed
from easyllm.heartbeat import beat
from easyllm.parallelism import world
from easyllm.training.checkpointing import checkpoints, optimizer_state

CheckpointFile = tuple[str, Callable[[Path], None]]
"""A file of a checkpoint, by its path in the folder, and the function that writes it. For the files
beside the weights, the path is that of their folder."""


class PendingSave:
    """A checkpoint that is not complete yet."""

    def __init__(self, target: Path, facts: dict[str, Any]):
        self.target, self.facts = target, facts
        self.begun = self.written = time.perf_counter()
        self.errors = CollectiveErrors()
        self.files: dict[str, Any] = {}
        self.thread: threading.Thread | None = None
        self.failed: BaseException | None = None
        self.atomic_dir: AtomicDir | None = None
        """Only on rank 0, which renames the temporary folder into which all ranks write."""

    @property
    def busy(self) -> bool:
        return self.thread is not None and self.thread.is_alive()

    def open(self) -> None:
        if world.is_main():
            with self.errors:
                self.atomic_dir = AtomicDir(self.target)
                for part in (checkpoints.WEIGHTS, optimizer_state.FOLDER):
                    (self.atomic_dir.temporary / part).mkdir()
        self.folder: Path = world.broadcast_object(
            self.atomic_dir.temporary if self.atomic_dir else None
        )
        self.errors.agree(self.target)

    def write(self, parts: Iterator[CheckpointFile] | list[CheckpointFile], copied: bool) -> None:
        """Write ``parts``; in a thread if they are ``copied`` from what is trained."""
        if not copied:
            self._write(parts)
            return
        self.thread = threading.Thread(
            target=self._write_in_thread, args=(parts,), daemon=True, name="save"
        )
        self.thread.start()

    def _write_in_thread(self, parts: list[CheckpointFile]) -> None:
        try:
            self._write(self._released(parts))
        except BaseException as error:  # to be raised where it is seen
            self.failed = error

    @staticmethod
    def _released(parts: list[CheckpointFile]) -> Iterator[CheckpointFile]:
        """The parts, each of which is freed once it is written."""
        while parts:
            yield parts.pop(0)

    def _write(self, parts: Iterator[CheckpointFile] | list[CheckpointFile]) -> None:
        names: list[str] = []
        for name, write in parts:  # all of them, even after an error: all ranks take part
            beat()
            with self.errors:
                if self.errors.first is not None:
                    continue
                if name == checkpoints.WEIGHTS:
                    names += self._beside(write)
                else:
                    write(self.folder / name)
                    names.append(name)
        with self.errors:
            self.files = checkpoints.facts_of(self.folder, names)
            for name in names:
                flush(self.folder / name)
                beat()
        self.written = time.perf_counter()

    def _beside(self, write: Callable[[Path], None]) -> list[str]:
        """The files that ``write`` puts beside the shards while other ranks write there."""
        beside = self.folder / "beside"
        beside.mkdir()
        write(beside)
        made = checkpoints.file_names(beside)
        for name in made:
            place = self.folder / checkpoints.WEIGHTS / name
            place.parent.mkdir(exist_ok=True)
            (beside / name).rename(place)
        removed(beside)
        return [f"{checkpoints.WEIGHTS}/{name}" for name in made]

    def finish(self) -> None:
        """Wait for all ranks, list the files and give the folder its name."""
        if self.thread is not None:
            self.thread.join()
        if self.failed is not None:
            raise self.failed
        everything = world.all_gather_object(self.files)
        self.errors.agree(self.target)
        if self.atomic_dir is not None:
            with self.errors:
                whole = {name: fact for part in everything for name, fact in part.items()}
                checkpoints.write_manifest(self.folder, self.facts, dict(sorted(whole.items())))
                self.atomic_dir.install()
        self.errors.agree(self.target)

    def close(self) -> None:
        """Remove the temporary folder, unless it has been renamed."""
        if self.atomic_dir is not None and not self.busy:
            self.atomic_dir.discard()


class CollectiveErrors:
    """Makes all ranks fail together: the first disk error within its ``with`` blocks is kept, and
    ``agree`` raises it on all ranks.

    A rank that raised at once would leave the others waiting for it, and would leave its files
    behind.
    """

    first: str | None = None

    def __enter__(self) -> CollectiveErrors:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not isinstance(error, OSError | SafetensorError):
            return False
        self.first = self.first or str(error)
        return True

    def agree(self, target: Path) -> None:
        """Raise UserError on all ranks if any had an error while writing ``target``."""
        met = [error for error in world.all_gather_object(self.first) if error]
        if met:
            raise UserError(
                f"{target} could not be saved: {met[0]}; older checkpoints are kept. Make "
                "room there, then run the same command again"
            )
