"""The shuffled files dealt into partitions, each with a share of every data set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest as manifests
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.token_files import damaged
from easyllm.errors import UserError
from easyllm.files import StagingDir, sha256, stable_hash
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec


def repartition(run: RunSpec) -> dict[str, Any]:
    """Deal the shuffled files into ``data.partitions`` folders; returns the metrics.

    A partition holds hard links, or copies where the file system has no links.
    """
    place = RunPaths(run).store
    shuffled = manifests.require(place, "shuffle")
    parts = shuffled["metrics"]["partitions"]
    if parts != run.data.partitions:
        raise UserError(
            f"{place.shuffled} was shuffled into {parts} files a source, but "
            f"data.partitions={run.data.partitions}; add shuffle to stages, or give "
            f"data.partitions={parts}"
        )
    made_from = {"shuffled": manifests.identity(shuffled), "partitions": parts}
    work = partial(_fill, run, place, shuffled, parts)
    return manifests.make(place, "repartition", made_from, work)


def _fill(
    run: RunSpec, place: StorePaths, shuffled: Manifest, parts: int, staging: StagingDir
) -> Manifest:
    if manifests.folder(place, "repartition").exists():
        _check(place, shuffled)
    staging.clear()  # starts from scratch: files of a killed process are not trusted
    folder = staging.folder
    folder.mkdir()
    # the original names partitions by 18 hexadecimal digits; here they hash the content
    uuid = stable_hash(shuffled["sources"], 18)
    sources: dict[str, Any] = {name: {**s, "files": []} for name, s in shuffled["sources"].items()}
    links = 0
    deals = []
    for number in range(parts):
        deal = []
        for name, source in shuffled["sources"].items():
            file = source["files"][number]
            path = f"{uuid}-part-{number:05}/{Path(file['path']).name}"
            deal.append((place.shuffled / file["path"], folder / path))
            sources[name]["files"].append({**file, "path": path})
        deals.append(deal)
    with (
        manifests.scratch(place, "repartition") as scratch,
        run.data.engine.open(run, scratch) as pool,
        progress("repartition", parts * len(sources), "file") as bar,
    ):
        for linked in pool.map(_deal, deals, 1):  # a link takes less time than a process
            links += linked
            bar.update(len(sources))
    files = [file for source in sources.values() for file in source["files"]]
    samples = sum(file["documents"] for file in files)
    (folder / "data.info").write_text(_info(sources, uuid, parts, samples), "utf-8")
    return {
        **{key: shuffled[key] for key in manifests.CARRIED},
        "tokens": shuffled["tokens"],
        "shuffled": manifests.identity(shuffled),
        "uuid": uuid,
        "sources": sources,
        "metrics": {
            "partitions": parts,
            "files": len(files),
            "linked": links,
            "documents": samples,
            "tokens": sum(file["tokens"] for file in files),
            "bytes": sum(file["bytes"] for file in files),
        },
    }


def _check(place: StorePaths, shuffled: Manifest) -> None:
    """Raises UserError for a shuffled file whose content is not what was written.

    Called where partitions are made again: a damaged partition is a link to a damaged file.
    """
    for source in shuffled["sources"].values():
        for file in source["files"]:
            path = place.shuffled / file["path"]
            if path.is_file() and sha256(path) != file["sha256"]:
                raise damaged(path, "its content is not what was written", "shuffle")


def _deal(files: Iterable[tuple[Path, Path]]) -> int:
    """Fill a partition from the shuffled files; returns how many of its files are links."""
    links = 0
    for file, to in files:
        to.parent.mkdir(exist_ok=True)
        links += _link(file, to)
    return links


def _link(file: Path, to: Path) -> bool:
    try:
        os.link(file, to)
    except FileNotFoundError:
        raise UserError(f"{file} is gone; run again with shuffle among the stages") from None
    except OSError:
        shutil.copyfile(file, to)
        return False
    return True


def _info(sources: dict[str, Any], uuid: str, parts: int, samples: int) -> str:
    """What a partitioned store holds, for people: counts, then each file's sizes."""
    files = sorted(
        (file["path"], file["documents"], file["tokens"], file["bytes"])
        for source in sources.values()
        for file in source["files"]
    )
    lines = [
        f"Data: {' '.join(source['dataset'] for source in sources.values())}",
        f"Partitions: {parts}",
        f"Files: {len(files)}",
        f"Samples: {samples}",
        f"UUID: {uuid}",
        "",
        *(
            f"{path}\t{rows} rows\t{tokens} tokens\t{size} bytes"
            for path, rows, tokens, size in files
        ),
    ]
    return "\n".join(lines) + "\n"
