"""The manifest that a data stage writes last, and the check that its files are still there."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.files import StagingDir, file_lock, read_record, stable_hash, write_record
from easyllm.paths import StorePaths
from easyllm.spec.run import RunSpec

SCHEMA = 3
"""Version of the store's layout; raised when an old store can no longer be read."""

STAGES = {"tokenize": "tokens", "shuffle": "shuffled", "repartition": "partitions"}
"""The data stages in order, with the folder of the store that each writes."""

CARRIED = ("tokenizer", "template", "encoding", "chats", "vocab_size", "eos_id", "pad_id")
"""Keys that later stages copy from the tokens' manifest."""

BESIDE = {"manifest.json", "data.info", "rejected.jsonl"}
"""What a stage's folder holds besides its parquet files."""

Manifest = dict[str, Any]


def folder(store: StorePaths, stage: str) -> Path:
    return store.root / STAGES[stage]


def location(store: StorePaths, stage: str) -> Path:
    return folder(store, stage) / "manifest.json"


def find(store: StorePaths, stage: str) -> Manifest | None:
    """The manifest of a finished stage, or None."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        manifest: Manifest = read_record(location(store, stage))
        if manifest.get("schema") == SCHEMA:
            return manifest
    return None


def last_stage(run: RunSpec, store: StorePaths) -> str | None:
    """The stage whose output training reads: the last data stage of the run or, where it has
    none, the last whose output is in the store. None where there is neither."""
    of_run = [stage for stage in STAGES if stage in run.stages]
    found = of_run or [stage for stage in STAGES if find(store, stage)]
    return found[-1] if found else None


def require(store: StorePaths, stage: str) -> Manifest:
    """The manifest of a stage that another one needs. Raises UserError where it is absent."""
    manifest = find(store, stage)
    if manifest is None:
        raise UserError(
            f"the token store {store.root} has no whole {STAGES[stage]}/ (no usable "
            f"{location(store, stage).name}); add {stage} to stages"
        )
    return manifest


def identity(manifest: Manifest) -> str:
    """A hash of what a stage made, without its metrics."""
    return stable_hash({key: value for key, value in manifest.items() if key != "metrics"})


def paths(store: StorePaths, stage: str) -> list[Path]:
    """What a finished stage made, its manifest last; the manifest alone where it is absent."""
    manifest = find(store, stage)
    if manifest is None:
        return [location(store, stage)]
    files = [folder(store, stage) / file["path"] for file in _files(manifest)]
    if stage == "tokenize":
        files += sorted(file for file in store.tokenizer.rglob("*") if file.is_file())
    return [*files, location(store, stage)]


def tokenizer_identity(folder: Path) -> str:
    """A hash of the tokenizer's files."""
    found = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        found.update(f"{file.relative_to(folder)}\0{file.stat().st_size}\0".encode())
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def make(
    store: StorePaths, stage: str, made_from: Any, work: Callable[[StagingDir], Manifest]
) -> dict[str, Any]:
    """Let ``work`` fill the stage's folder, unless it holds the same already.

    ``made_from`` is all that determines the result. ``work`` gets a workshop, with the
    pieces that a killed process finished there, and returns the manifest with ``metrics``;
    these are returned, with ``reused`` where another run has done the work. Processes with
    the same store wait for each other. Raises UserError where the folder holds something
    else, saying what differs: a store is never overwritten.
    """
    made_from = json.loads(json.dumps(made_from))
    with file_lock(store.root / f"{STAGES[stage]}.lock"):
        there = find(store, stage)
        staging = StagingDir(folder(store, stage))
        if there and there["made_from"] == made_from and _whole(store, stage, there):
            staging.clear()
            return {**there["metrics"], "reused": True}
        if there and there["made_from"] != made_from:
            raise UserError(
                f"data.dir={store.root}: its {STAGES[stage]}/ was made from other data or with "
                f"other settings:\n{differences(there['made_from'], made_from)}\n"
                f"give another data.dir, or remove {folder(store, stage)}"
            )
        sweep(folder(store, stage))
        location(store, stage).unlink(missing_ok=True)
        staging.folder.mkdir(exist_ok=True)
        manifest = {"schema": SCHEMA, "made_from": made_from, **work(staging)}
        write_record(staging.folder / "manifest.json", manifest)
        names = {file["path"] for file in _files(manifest)}
        staging.finish(names | BESIDE)
        return {**manifest["metrics"], "reused": False}


@contextlib.contextmanager
def scratch(store: StorePaths, stage: str) -> Iterator[Path]:
    """An empty folder of the store that exists during a stage.

    By its name the next process removes what a killed process leaves.
    """
    with tempfile.TemporaryDirectory(
        prefix=f".{STAGES[stage]}.", suffix=".scratch", dir=store.root
    ) as folder:
        yield Path(folder)


def differences(there: Any, here: Any, key: str = "") -> str:
    """A line for each key whose values differ, ``there`` those of the store."""
    return "\n".join(_differences(there, here, key))


def _differences(there: Any, here: Any, key: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        for name in sorted(there.keys() | here.keys()):
            inner = f"{key}.{name}" if key else name
            yield from _differences(there.get(name), here.get(name), inner)
    elif there != here:
        yield f"  {key}: {_short(there)} in the store, {_short(here)} in this run"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:40]}… ({stable_hash(value)})"


def _files(manifest: Manifest) -> Iterator[dict[str, Any]]:
    for source in manifest["sources"].values():
        yield from source["files"]


def _whole(store: StorePaths, stage: str, manifest: Manifest) -> bool:
    for file in _files(manifest):
        path = folder(store, stage) / file["path"]
        if not path.is_file() or path.stat().st_size != file["bytes"]:
            return False
    return bool(manifest["tokenizer"] == tokenizer_identity(store.tokenizer))


def sweep(target: Path) -> None:
    """Remove what killed processes left beside ``target``; the lock is held."""
    for leftover in target.parent.glob(f".{target.name}.*.*"):
        shutil.rmtree(leftover, ignore_errors=True)
