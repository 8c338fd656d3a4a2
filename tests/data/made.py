"""Token stores written directly, for tests that need other tokens than a tokenizer gives."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data.store import manifest, token_files
from easyllm.data.store.shards import Shard
from easyllm.files import atomic_dir, write_json
from easyllm.paths import StorePaths
from easyllm.spec.run import RunSpec
from tests.support import merged, run_spec


def shard(documents: Sequence[Sequence[int]], trained: Sequence[Sequence[bool]] | None) -> Shard:
    """Documents as given, token by token."""
    offsets = np.cumsum([0, *map(len, documents)])
    masks = None if trained is None else np.array([t for row in trained for t in row], np.bool_)
    return Shard(np.array([t for row in documents for t in row], np.int32), offsets, masks)


def tokens_store(
    folder: Path,
    sources: dict[str, list[Shard]],
    weights: Mapping[str, float] | None = None,
    tokenizer: Path | None = None,
    **changes: Any,
) -> RunSpec:
    """Write a store whose ``tokens/`` hold these files a source, with the ``tokenizer`` in a folder
    or none; a run that reads it."""
    place = StorePaths(folder / "store")
    place.tokenizer.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        shutil.copytree(tokenizer, place.tokenizer, dirs_exist_ok=True)
    made = {}
    with atomic_dir(place.tokens) as temporary:
        for name, files in sources.items():
            paths = [f"{name}/{number}.parquet" for number in range(len(files))]
            entries = [
                token_files.save(temporary / path, path, part, "none")
                for path, part in zip(paths, files, strict=True)
            ]
            weight = (weights or {}).get(name, 1.0)
            made[name] = {"dataset": name, "weight": weight, **token_files.totals(entries)}
        content = {
            "schema": manifest.SCHEMA,
            "made_from": {},
            **dict.fromkeys(manifest.CARRIED, 0),
            "tokenizer": manifest.tokenizer_identity(place.tokenizer),
            "encoding": {},
            "chats": {},
            "sources": made,
            "metrics": {},
        }
        write_json(temporary / "manifest.json", content)
    return run_spec(folder, merged({"seed": 7, "data": {"workers": 1}}, changes))
