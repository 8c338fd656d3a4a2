"""Documents in and out of the token store, every file checked against its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyllm.data import manifest as manifests
from easyllm.data import shards
from easyllm.data.manifest import Manifest
from easyllm.data.shards import Shard, UInt64
from easyllm.errors import UserError
from easyllm.paths import StorePaths


def save(root: Path, path: str, shard: Shard, compression: str) -> dict[str, Any]:
    """Write a shard to ``root/path``; returns the manifest's entry for it."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    shards.write(target, shard, compression)
    with target.open("rb") as handle:
        sha256 = hashlib.file_digest(handle, "sha256").hexdigest()
    return {
        "path": path,
        "documents": shard.documents,
        "tokens": shard.tokens,
        "trained_tokens": shard.trained_tokens,
        "bytes": target.stat().st_size,
        "sha256": sha256,
        "checksum": shards.checksum(shards.hashes(shard)),
    }


def load(
    store: StorePaths, stage: str, manifest: Manifest, source: str
) -> Iterator[tuple[Shard, UInt64]]:
    """The shards of a source in the order of the manifest, with their documents' hashes.

    Raises UserError for a file that is absent or is not what ``stage`` wrote.
    """
    for file in manifest["sources"][source]["files"]:
        path = manifests.folder(store, stage) / file["path"]
        try:
            shard = shards.read(path)
            if (shard.documents, shard.tokens) != (file["documents"], file["tokens"]):
                raise shards.Damaged(
                    f"holds {shard.documents} documents of {shard.tokens} tokens, not "
                    f"{file['documents']} of {file['tokens']}"
                )
            hashes = shards.hashes(shard)
            if shards.checksum(hashes) != file["checksum"]:
                raise shards.Damaged("its tokens are not those that were written")
        except shards.Damaged as damage:
            raise UserError(
                f"{path} is damaged ({damage}); remove it and run again with {stage} among "
                "the stages"
            ) from None
        yield shard, hashes


def totals(files: list[dict[str, Any]]) -> dict[str, Any]:
    """Sums over the manifest entries of a source's files."""
    counts = {
        key: sum(file[key] for file in files)
        for key in ("documents", "tokens", "trained_tokens", "bytes")
    }
    checksum = shards.add_checksums(*(file["checksum"] for file in files))
    return {**counts, "checksum": checksum, "files": files}


def file_name(stem: str, number: int, compression: str) -> str:
    """``<stem>-part-0000k.<codec>.parquet``."""
    codec = "" if compression == "none" else f".{compression}"
    return f"{stem}-part-{number:05}{codec}.parquet"
