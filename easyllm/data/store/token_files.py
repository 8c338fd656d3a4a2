"""Writes and reads the files of the token store; each is compared with its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from easyllm.data.store import manifest as manifests
from easyllm.data.store import shards
from easyllm.data.store.manifest import Manifest
from easyllm.data.store.shards import Shard, UInt64
from easyllm.errors import UserError
from easyllm.files import sha256
from easyllm.paths import StorePaths


def save(target: Path, path: str, shard: Shard, compression: str) -> dict[str, Any]:
    """Write a shard to ``target``; returns the manifest's entry for it, as ``path``."""
    return save_groups(target, path, shard.blocks(), shard.trained is not None, compression)


def save_groups(
    target: Path, path: str, groups: Iterable[Shard], masked: bool, compression: str
) -> dict[str, Any]:
    """Write shards to ``target``, a row group each; returns the manifest's entry.

    ``masked`` files have labels. One shard is held at a time. The file is not flushed to the
    disk yet: the caller that gives its folder the final name does that.
    """
    entry: dict[str, Any] = {"path": path, "documents": 0, "tokens": 0, "trained_tokens": 0}
    checksums = []
    target.parent.mkdir(parents=True, exist_ok=True)
    with shards.Writer(target, masked, compression) as writer:
        for group in groups:
            writer.write(group)
            for key in ("documents", "tokens", "trained_tokens"):
                entry[key] += getattr(group, key)
            checksums.append(shards.checksum(shards.hashes(group)))
    entry["sha256"] = sha256(target)
    entry["bytes"] = target.stat().st_size
    return {**entry, "checksum": shards.add_checksums(*checksums)}


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
            raise damaged(path, damage, stage) from None
        yield shard, hashes


def damaged(path: Path, damage: shards.Damaged | str, stage: str) -> UserError:
    return UserError(
        f"{path} is damaged ({damage}); remove it and run again with {stage} among the stages"
    )


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
