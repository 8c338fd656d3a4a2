"""What both ways of shuffling share: limits, sorted runs, and how their order is cut into
files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data.executors.pool import Pool
from easyllm.data.shuffle.external_sort import Index, Sorted, Unit
from easyllm.data.store import manifest as manifests
from easyllm.data.store import shards, token_files
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import Int64
from easyllm.errors import UserError
from easyllm.paths import StorePaths
from easyllm.spec.run import RunSpec

PROCESS_BYTES = 120 << 20
"""Memory of a process that has loaded numpy and Arrow."""

GROUP_BYTES = 20 * shards.BLOCK_TOKENS
"""Memory to read or write a row group."""

TOKEN_BYTES = 5
"""An id and whether it is trained."""

MOST_RUNS = 512
"""Number of sorted runs at most, where the memory allows so few."""


@dataclass(frozen=True)
class Limits:
    """How much is done at once; none of it changes the result."""

    workers: int
    capacity: int
    """Tokens a process sorts or merges at once."""

    @classmethod
    def of(cls, memory: float, workers: int, tokens: int) -> Limits:
        """For ``tokens`` in total and ``memory`` bytes. Raises UserError if these are too few."""
        least = PROCESS_BYTES + GROUP_BYTES + 2 * TOKEN_BYTES * shards.BLOCK_TOKENS
        room = int(memory) - PROCESS_BYTES  # this process waits while others work
        if room < least:
            raise UserError(
                f"data.memory_gb={memory / 1e9:g} does not hold a process and a row group; give "
                f"data.memory_gb={(least + PROCESS_BYTES) / 1e9:.2f} at least"
            )
        workers = min(workers, room // least, 1 + tokens // shards.BLOCK_TOKENS)
        # twice: what is read, and the copy in its new order
        each = (room // workers - PROCESS_BYTES - GROUP_BYTES) // 2
        return cls(workers, each // TOKEN_BYTES)


@dataclass(frozen=True)
class Source:
    """The row groups of a data set that are to be shuffled."""

    name: str
    units: list[Unit]
    masked: bool
    """Whether one of its files has labels."""


@dataclass(frozen=True)
class Output:
    """A file to be written."""

    source: str
    path: str
    runs: list[Path]
    bounds: Int64
    """Bounds of its row groups in each run, [groups + 1, runs]."""
    masked: bool


@dataclass(frozen=True)
class Job:
    """A shuffle to be done."""

    run: RunSpec
    place: StorePaths
    tokens: Manifest
    sources: list[Source]
    folder: Path
    """Where the files are written."""
    scratch: Path
    """For files that are removed when the shuffle ends."""
    bar: Any
    """Progress over the tokens, each counted twice: when first read and when written."""


def sorted_runs(
    pool: Pool,
    job: Job,
    work: Callable[[tuple[int, str, bool, list[Unit]]], Sorted],
    capacity: int,
    workers: int | None,
) -> dict[str, list[Path]]:
    """Every source's runs, which ``work`` made of at most ``capacity`` tokens at a time.

    Raises UserError for a file whose documents are not those that were written.
    """
    tasks = [(s, batch) for s in job.sources for batch in batches(s.units, capacity)]
    runs: dict[str, list[Path]] = {source.name: [] for source in job.sources}
    seen: dict[tuple[str, int], tuple[int, int]] = {}
    numbered = ((n, s.name, s.masked, batch) for n, (s, batch) in enumerate(tasks))
    for (source, batch), made in zip(tasks, pool.map(work, numbered, workers), strict=True):
        runs[source.name] += made.runs
        for file, (documents, there) in made.counts.items():
            before = seen.get((source.name, file), (0, 0))
            seen[source.name, file] = before[0] + documents, before[1] + there
        job.bar.update(sum(unit.group.tokens for unit in batch))
    for name, written in job.tokens["sources"].items():
        for number, entry in enumerate(written["files"]):
            documents, there = seen.get((name, number), (0, 0))
            if (documents, there) != (entry["documents"], entry["tokens"]):
                damage = (
                    f"holds {documents} documents of {there} tokens, not {entry['documents']} of "
                    f"{entry['tokens']}"
                )
                path = manifests.folder(job.place, "tokenize") / entry["path"]
                raise token_files.damaged(path, damage, "tokenize")
    return runs


def batches(units: list[Unit], capacity: int) -> Iterator[list[Unit]]:
    batch: list[Unit] = []
    for unit in units:
        if batch and sum(u.group.tokens for u in batch) + unit.group.tokens > capacity:
            yield batch
            batch = []
        batch.append(unit)
    if batch:
        yield batch


def cut(job: Job, runs: dict[str, list[Path]]) -> list[Output]:
    """Cut each source's order into ``data.partitions`` files of row groups."""
    run, tokens = job.run, job.tokens
    parts = run.data.partitions
    outputs = []
    whole = 0
    given = np.zeros(parts + 1, np.int64)  # tokens of earlier sources below each cut
    for source in job.sources:
        there = tokens["sources"][source.name]
        index = Index(runs[source.name])
        whole += there["tokens"]
        # a cut corrects the excess of the cuts of earlier sources
        targets = np.arange(parts + 1) * whole // parts - given
        cuts = _cuts(index, np.clip(targets, 0, there["tokens"]), there["documents"])
        ends = index.tokens(cuts)
        given += ends
        stem = f"{there['dataset']}-part-000"
        for number, (first, until) in enumerate(itertools.pairwise(ends.tolist())):
            inner = index.at_tokens(np.arange(first, until, shards.BLOCK_TOKENS)[1:])
            outputs.append(
                Output(
                    source.name,
                    f"{stem}/{token_files.file_name(stem, number, run.data.compression)}",
                    runs[source.name],
                    np.clip(np.vstack([cuts[number], inner, cuts[number + 1]]), cuts[number],
                            cuts[number + 1]),
                    source.masked,
                )
            )  # fmt: skip
    return outputs


def _cuts(index: Index, targets: Int64, documents: int) -> Int64:
    """Bounds nearest above ``targets`` tokens, with at least one document between each two."""
    parts = len(targets) - 1
    ranks = index.at_tokens(targets).sum(axis=1)
    for cut in range(1, parts):
        ranks[cut] = min(max(ranks[cut], ranks[cut - 1] + 1), documents - parts + cut)
    bounds = index.at_documents(ranks)
    bounds[0], bounds[-1] = index.start, index.end
    return bounds
