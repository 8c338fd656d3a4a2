"""The loss over rows that are held out of training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from easyllm.data.dataset.rows import Row
from easyllm.files import atomic_write
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.progress import progress
from easyllm.training.batches import NOTHING, Share, dealt, micro_batches


def evaluate(
    engine: TrainEngine, rows: Sequence[Row], micro_batch_size: int, vocab_size: int, step: int
) -> float:
    """Mean cross entropy over the trained tokens of ``rows``, after ``step`` steps. Must be
    called by every rank."""
    count = micro_batches(len(rows), micro_batch_size, engine.data_size)
    share = NOTHING
    if engine.reads_data:
        mine = dealt(rows, micro_batch_size, engine.data_rank, engine.data_size)
        share = Share.of(mine, vocab_size)
    batches = share.scaled(engine.sum_over_replicas(share.trained), engine.data_size)
    at_once, loss = engine.accumulation, 0.0
    with progress("evaluate", count, "batch", visible=world.is_main()) as bar:
        for begin in range(0, count, at_once):
            world.beat(f"evaluation after step {step}")
            some = min(at_once, count - begin)
            loss += engine.evaluate(batches[begin : begin + some], some) * some / count
            bar.update(some)
    return loss


def write(rows: Sequence[Row], file: Path) -> None:
    """Write the held-out documents, one a line. A plain loop over them, which does not know the
    boundaries of rows, finds the same loss."""
    with atomic_write(file) as temporary, temporary.open("w", encoding="utf-8") as lines:
        for row in rows:
            begins = np.flatnonzero(row.positions == 0)[1:]
            for ids, labels in zip(
                np.split(row.input_ids, begins), np.split(row.labels, begins), strict=True
            ):
                trained = np.flatnonzero(labels != -100)
                if len(trained):
                    end = int(trained[-1]) + 1
                    line = {"input_ids": ids[:end].tolist(), "labels": labels[:end].tolist()}
                    lines.write(json.dumps(line) + "\n")
