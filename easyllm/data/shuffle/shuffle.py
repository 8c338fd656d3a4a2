"""The documents of each data set in a uniformly random order, out of core.

The tree keeps a folder for each data set, as the original's does. All documents of a data
set, wherever they lay, come in one order, drawn uniformly from all there are; partition k of
it is the k-th stretch of that order. Training mixes the data sets: it permutes the documents
of all of them.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data.executors.pool import Pool, default_workers
from easyllm.data.shuffle import external_sort
from easyllm.data.shuffle.external_sort import Index, Sorted, Unit
from easyllm.data.store import manifest as manifests
from easyllm.data.store import shards, token_files
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import Int64
from easyllm.errors import UserError
from easyllm.files import Workshop
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec

PROCESS_BYTES = 120 << 20
"""Memory of a process that has loaded numpy and Arrow."""

GROUP_BYTES = 20 * shards.BLOCK_TOKENS
"""Memory to read or write a row group."""

TOKEN_BYTES = 5
"""An id and whether it is trained."""

MOST_RUNS = 512
"""Sorted runs, where the memory allows to have so few."""


@dataclass(frozen=True)
class Limits:
    """How much is done at once; none of it changes the result."""

    workers: int
    capacity: int
    """Tokens a process sorts or merges at once."""

    @classmethod
    def of(cls, memory: float, workers: int, tokens: int) -> Limits:
        """For ``tokens`` in all and ``memory`` bytes. Raises UserError where it is too little."""
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
    """What is to be shuffled of a data set."""

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
    """Of its row groups in each run, [groups + 1, runs]."""
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
    """For what goes when the shuffle ends."""
    bar: Any
    """Progress over the tokens, each counted twice: when read first and when written."""


def shuffle(run: RunSpec) -> dict[str, Any]:
    """Shuffle each source by rows into ``data.partitions`` files; returns the metrics.

    The files divide the tokens evenly, those of all sources together to within a document.
    Takes ``data.memory_gb`` of memory and, until it ends, five bytes a token on the disk.
    """
    place = RunPaths(run).store
    tokens = manifests.require(place, "tokenize")
    made_from = {
        "tokens": manifests.identity(tokens),
        "seed": run.seed,
        "partitions": run.data.partitions,
        "compression": run.data.compression,
    }
    return manifests.make(place, "shuffle", made_from, partial(_fill, run, place, tokens))


def _fill(run: RunSpec, place: StorePaths, tokens: Manifest, workshop: Workshop) -> Manifest:
    _check_partitions(run, tokens)
    total = sum(source["tokens"] for source in tokens["sources"].values())
    _check_room(place.root, TOKEN_BYTES * total)
    workshop.clear()  # what a killed process left is not trusted
    workshop.folder.mkdir()
    began = time.perf_counter()
    with (
        manifests.scratch(place, "shuffle") as scratch,
        run.data.engine.open(run, scratch) as pool,
        progress("shuffle", 2 * total, "tok") as bar,
    ):
        sources = _sources(place, tokens)
        job = Job(run, place, tokens, sources, workshop.folder, scratch, bar)
        files = pool.shuffle(job) or out_of_core(pool, job)
    made = _checked(place, tokens, files)
    return _manifest(run, tokens, made, time.perf_counter() - began)


def _check_partitions(run: RunSpec, tokens: Manifest) -> None:
    partitions = run.data.partitions
    for name, source in tokens["sources"].items():
        if source["documents"] < partitions:
            raise UserError(
                f"data.partitions={partitions}, but the source {name} has {source['documents']} "
                f"documents only; give data.partitions={source['documents']} at most"
            )


def _checked(
    place: StorePaths, tokens: Manifest, files: dict[str, list[dict[str, Any]]]
) -> dict[str, dict[str, Any]]:
    """The manifest's sources, whose rows are those that were tokenized."""
    made = {}
    for name, source in tokens["sources"].items():
        made[name] = {
            "dataset": source["dataset"],
            "weight": source["weight"],
            **token_files.totals(files[name]),
        }
        if made[name]["checksum"] != source["checksum"]:
            for _ in token_files.load(place, "tokenize", tokens, name):
                pass  # a file that holds other tokens is named
            raise RuntimeError(f"shuffling changed the rows of {name}; nothing was kept")
    return made


def _manifest(
    run: RunSpec, tokens: Manifest, made: dict[str, dict[str, Any]], seconds: float
) -> Manifest:
    counts = {
        key: sum(source[key] for source in made.values())
        for key in ("documents", "tokens", "bytes")
    }
    return {
        **{key: tokens[key] for key in manifests.CARRIED},
        "tokens": manifests.identity(tokens),
        "sources": made,
        "metrics": {
            **counts,
            "partitions": run.data.partitions,
            "checksum": shards.add_checksums(*(source["checksum"] for source in made.values())),
            "tokens_per_second": round(counts["tokens"] / seconds, 1),
        },
    }


def out_of_core(pool: Pool, job: Job) -> dict[str, list[dict[str, Any]]]:
    """Sort runs, then merge them into the files; the manifest's entries by source."""
    data, total = job.run.data, sum(source["tokens"] for source in job.tokens["sources"].values())
    limits = Limits.of(data.memory_gb * 1e9, data.workers or default_workers(), total)
    runs = _sort(pool, job, limits)
    outputs = cut(job, runs)
    return _merge(pool, outputs, job, limits)


def _check_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if free < needed:
        raise UserError(
            f"shuffling takes {needed / 1e9:.1f} GB beside the store while it runs, and "
            f"{root} has {free / 1e9:.1f} GB left; make room, or give another data.dir"
        )


def _sources(place: StorePaths, tokens: Manifest) -> list[Source]:
    sources = []
    for name, source in tokens["sources"].items():
        units: list[Unit] = []
        masked = False
        for number, file in enumerate(source["files"]):
            path = manifests.folder(place, "tokenize") / file["path"]
            try:
                groups, labels = shards.groups(path)
            except shards.Damaged as damage:
                raise token_files.damaged(path, damage, "tokenize") from None
            units += [Unit(number, group) for group in groups]
            masked |= labels
        sources.append(Source(name, units, masked))
    return sources


def _sort(pool: Pool, job: Job, limits: Limits) -> dict[str, list[Path]]:
    """The first pass: every source's runs. Raises UserError for a damaged file."""
    total = sum(unit.group.tokens for source in job.sources for unit in source.units)
    # a row group a run copies least, but of many runs the second pass reads little at a time
    capacity = min(limits.capacity, max(shards.BLOCK_TOKENS, total // MOST_RUNS))
    work = partial(_sort_some, job.run.seed, capacity, job.scratch)
    return sorted_runs(pool, job, work, capacity, limits.workers)


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


def _sort_some(
    seed: int, capacity: int, folder: Path, job: tuple[int, str, bool, list[Unit]]
) -> Sorted:
    number, source, masked, units = job
    return external_sort.sort(units, masked, capacity, seed, source, folder / str(number))


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
        # a cut makes good what those of earlier sources gave too much
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
    """Bounds nearest above ``targets`` tokens with a document at least between each two."""
    parts = len(targets) - 1
    ranks = index.at_tokens(targets).sum(axis=1)
    for cut in range(1, parts):
        ranks[cut] = min(max(ranks[cut], ranks[cut - 1] + 1), documents - parts + cut)
    bounds = index.at_documents(ranks)
    bounds[0], bounds[-1] = index.start, index.end
    return bounds


def _merge(
    pool: Pool, outputs: list[Output], job: Job, limits: Limits
) -> dict[str, list[dict[str, Any]]]:
    """The second pass: the entries of every source's files."""
    files: dict[str, list[dict[str, Any]]] = {output.source: [] for output in outputs}
    work = partial(_write, job.folder, job.run.data.compression, limits.capacity)
    for output, entry in zip(outputs, pool.map(work, outputs, limits.workers), strict=True):
        files[output.source].append(entry)
        job.bar.update(entry["tokens"])
    return files


def _write(folder: Path, compression: str, capacity: int, output: Output) -> dict[str, Any]:
    groups = external_sort.merge(output.runs, output.bounds, output.masked, capacity)
    return token_files.save_groups(
        folder / output.path, output.path, groups, output.masked, compression
    )
