"""Training metrics for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.spec.roles import Tracker
from easyllm.spec.types import Place


@dataclass(frozen=True, kw_only=True)
class TensorBoard(Tracker):
    """Writes event files that ``tensorboard --logdir`` reads."""

    folder: Place | None = None
    """Folder of the event files; null writes ``tensorboard`` in the run directory."""

    requires = {"tensorboard": "tensorboard"}  # noqa: RUF012  (a constant of the class)

    def open(
        self, name: str, folder: Path, settings: Mapping[str, Any], *, done: int = 0
    ) -> Writer:
        """Start an event file; ``settings`` become its text panel. Steps after ``done`` in earlier
        files are no longer shown.

        ``folder`` is the run directory.
        """
        from torch.utils.tensorboard import SummaryWriter

        place = Path(self.folder) if self.folder else folder / "tensorboard"
        writer = SummaryWriter(str(place), purge_step=done + 1)
        rows = "\n".join(f"    {key}: {value}" for key, value in settings.items())
        writer.add_text(name, rows)
        return Writer(writer)


class Writer:
    """An open event file."""

    def __init__(self, writer: Any):
        self._writer = writer

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among ``values`` at ``step``, all as one event, which takes a sixth of
        the time of one event for each."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        numbers = [
            Summary.Value(tag=key, simple_value=value)
            for key, value in values.items()
            if isinstance(value, int | float)
        ]
        self._writer.file_writer.add_summary(Summary(value=numbers), step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()
