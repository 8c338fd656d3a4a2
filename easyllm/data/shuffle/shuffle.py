"""The documents of each data set in a uniformly random order, out of core.

The store has a folder for each data set, as the original's does. All documents of a data set,
from all its files, are put in one order, drawn uniformly from all orders; partition k is the
k-th section of that order. Training mixes the data sets: it permutes the documents of all of
them.
"""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from easyllm.data.executors.pool import Pool, default_workers
from easyllm.data.shuffle import external_sort
from easyllm.data.shuffle.external_sort import Sorted, Unit
from easyllm.data.shuffle.job import (
    MOST_RUNS,
    TOKEN_BYTES,
    Job,
    Limits,
    Output,
    Source,
    cut,
    sorted_runs,
)
from easyllm.data.store import manifest as manifests
from easyllm.data.store import shards, token_files
from easyllm.data.store.manifest import Manifest
from easyllm.errors import UserError
from easyllm.files import StagingDir
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec


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


def _fill(run: RunSpec, place: StorePaths, tokens: Manifest, staging: StagingDir) -> Manifest:
    _check_partitions(run, tokens)
    total = sum(source["tokens"] for source in tokens["sources"].values())
    _check_room(place.root, TOKEN_BYTES * total)
    staging.clear()  # what a killed process left is not trusted
    staging.folder.mkdir()
    began = time.perf_counter()
    with (
        manifests.scratch(place, "shuffle") as scratch,
        run.data.engine.open(run, scratch) as pool,
        progress("shuffle", 2 * total, "tok") as bar,
    ):
        sources = _sources(place, tokens)
        job = Job(run, place, tokens, sources, staging.folder, scratch, bar)
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
                pass  # raises a UserError that names a file with other tokens
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
    """Sort runs, then merge them into the files; returns the manifest's entries by source."""
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
    # runs of one row group copy least, but the second pass reads little at a time of many runs
    capacity = min(limits.capacity, max(shards.BLOCK_TOKENS, total // MOST_RUNS))
    work = partial(_sort_some, job.run.seed, capacity, job.scratch)
    return sorted_runs(pool, job, work, capacity, limits.workers)


def _sort_some(
    seed: int, capacity: int, folder: Path, job: tuple[int, str, bool, list[Unit]]
) -> Sorted:
    number, source, masked, units = job
    return external_sort.sort(units, masked, capacity, seed, source, folder / str(number))


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
