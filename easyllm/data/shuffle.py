"""The documents of each data set in a uniformly random order."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data import manifest as manifests
from easyllm.data import store
from easyllm.data.manifest import Manifest
from easyllm.data.random import generator
from easyllm.data.shards import join
from easyllm.errors import UserError
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec


def shuffle(run: RunSpec) -> dict[str, Any]:
    """Shuffle each source by rows into ``data.partitions`` files; returns the metrics.

    Takes memory for one source at a time.
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


def _fill(run: RunSpec, place: StorePaths, tokens: Manifest, folder: Path) -> Manifest:
    began = time.perf_counter()
    parts = run.data.partitions
    sources = {}
    total = sum(source["tokens"] for source in tokens["sources"].values())
    with progress("shuffle", 2 * total, "tok") as bar:  # each read once and written once
        for name, source in tokens["sources"].items():
            if source["documents"] < parts:
                raise UserError(
                    f"data.partitions={parts}, but the source {name} has {source['documents']} "
                    f"documents only; give data.partitions={source['documents']} at most"
                )
            shards = []
            for shard, _ in store.load(place, "tokenize", tokens, name):
                shards.append(shard)
                bar.update(shard.tokens)
            whole = join(shards)
            order = generator(run.seed, "shuffle", name).permutation(whole.documents)
            stem = f"{source['dataset']}-part-000"
            files = []
            for number, rows in enumerate(np.array_split(order, parts)):
                path = f"{stem}/{store.file_name(stem, number, run.data.compression)}"
                files.append(store.save(folder, path, whole.take(rows), run.data.compression))
                bar.update(files[-1]["tokens"])
            sources[name] = {
                "dataset": source["dataset"],
                "weight": source["weight"],
                **store.totals(files),
            }
            assert sources[name]["checksum"] == source["checksum"], f"shuffling changed {name}"
    seconds = time.perf_counter() - began
    counts = {
        key: sum(source[key] for source in sources.values())
        for key in ("documents", "tokens", "bytes")
    }
    return {
        **{key: tokens[key] for key in manifests.CARRIED},
        "tokens": manifests.identity(tokens),
        "sources": sources,
        "metrics": {
            **counts,
            "partitions": parts,
            "tokens_per_second": round(counts["tokens"] / seconds, 1),
        },
    }
