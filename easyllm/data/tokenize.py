"""Texts to the token store, on as many processes as there are cores."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.data import store
from easyllm.data.encoding import Document, encode, load_tokenizer
from easyllm.data.identity import encoding, tokens_identity
from easyllm.data.manifest import Manifest, make, tokenizer_identity
from easyllm.data.originals import TokenStore
from easyllm.data.pool import ordered_map
from easyllm.data.templates import end_of_sequence
from easyllm.errors import UserError
from easyllm.files import Workshop, digest, fingerprint, new_folder
from easyllm.paths import RunPaths, StorePaths
from easyllm.progress import progress
from easyllm.spec.roles import Reader, Template
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

CHUNK = 1 << 22
"""Characters of text in a parquet file, about: the unit of work of a process."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive documents of one input file, which become one parquet file."""

    source: str
    path: str
    file: Path
    documents: list[Document] | TokenStore
    """The documents; or the reader of a file of tokens."""
    limit: int | None = None
    """Documents to take of a file of tokens at most."""


def tokenize(run: RunSpec) -> dict[str, Any]:
    """Tokenize the run's sources into its store; returns the stage's metrics."""
    for name, reader in run.data.sources.items():
        _files(name, reader)  # said before any work
    place = RunPaths(run).store
    return make(place, "tokenize", tokens_identity(run), functools.partial(_fill, run, place))


def _files(name: str, reader: Reader) -> list[Path]:
    try:
        return reader.files()
    except FileNotFoundError as error:
        raise UserError(f"data.sources.{name}: {error}; give data.sources.{name}.path") from None


def _fill(run: RunSpec, place: StorePaths, workshop: Workshop) -> Manifest:
    identity = _tokenizer(run, place, workshop)
    tokenizer = _loaded(place.tokenizer, identity)
    eos = end_of_sequence(tokenizer)
    began = time.perf_counter()

    made: dict[str, list[dict[str, Any]]] = {name: [] for name in sorted(run.data.sources)}
    text_bytes = 0
    total = None
    if run.data.limit is None:
        total = sum(f.stat().st_size for n, r in run.data.sources.items() for f in _files(n, r))
    work = functools.partial(
        _encode_chunk, place.tokenizer, identity, run.data.template, workshop, run.data.compression
    )
    with progress("tokenize", total, "B") as bar:
        for source, size, entry in ordered_map(work, _chunks(run), run.data.workers):
            made[source].append(entry)
            text_bytes += size
            bar.update(size)
    for name, files in made.items():
        if not files:
            raise UserError(
                f"data.sources.{name} holds no document: every file is empty; give another "
                f"path, or remove the source with ~data.sources.{name}"
            )
    sources = {
        name: {
            "dataset": f"{name}_{run.data.tokenizer.label(run)}",
            "weight": run.data.sources[name].weight,
            **store.totals(files),
        }
        for name, files in made.items()
    }
    seconds = time.perf_counter() - began
    counts = {
        key: sum(source[key] for source in sources.values())
        for key in ("documents", "tokens", "trained_tokens", "bytes")
    }
    return {
        "tokenizer": identity,
        "template": digest(write(run.data.template)),
        "encoding": encoding(run),
        "vocab_size": len(tokenizer),
        "eos_id": eos,
        "pad_id": eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        "sources": sources,
        "metrics": {
            **counts,
            "text_bytes": text_bytes,
            "vocab_size": len(tokenizer),
            "tokens_per_second": round(counts["tokens"] / seconds, 1),
            "mb_per_second": round(text_bytes / seconds / 1e6, 3),
        },
    }


def _tokenizer(run: RunSpec, place: StorePaths, workshop: Workshop) -> str:
    """Make the store's tokenizer, unless a killed process did; its identity."""

    def make(note: Path) -> str:
        with new_folder(place.tokenizer) as aside:
            run.data.tokenizer.make(run, aside)
        note.touch()
        return tokenizer_identity(place.tokenizer)

    made_from = tokens_identity(run)
    identity: str = workshop.piece("tokenizer", made_from, make)
    if identity != tokenizer_identity(place.tokenizer):
        (workshop.folder / "tokenizer").unlink()
        identity = workshop.piece("tokenizer", made_from, make)
    return identity


def _chunks(run: RunSpec) -> Iterator[Chunk]:
    for name, reader in sorted(run.data.sources.items()):
        left = run.data.limit
        for number, file in enumerate(_files(name, reader)):
            stem = f"{name}-part-{number:02}"
            folder = f"{name}_{run.data.tokenizer.label(run)}/{stem}"
            seen = 0
            if isinstance(reader, TokenStore):
                path = f"{folder}/{store.file_name(stem, 0, run.data.compression)}"
                yield Chunk(name, path, file, reader, left)
                seen = reader.rows(file)
            else:
                for part, documents in enumerate(_cut(reader, file, run.data.rows_per_file, left)):
                    path = f"{folder}/{store.file_name(stem, part, run.data.compression)}"
                    yield Chunk(name, path, file, documents)
                    seen += len(documents)
            if left is not None:
                left -= seen
                if left <= 0:
                    break


def _cut(reader: Reader, file: Path, rows: int, limit: int | None) -> Iterator[list[Document]]:
    """The documents of a file, at most ``limit``, in parts that depend on nothing else."""
    part: list[Document] = []
    size = seen = 0
    for document in reader.documents(file):
        if seen == limit:
            break
        if not document:
            continue
        seen += 1
        part.append(document)
        size += _length(document)
        if len(part) == rows or size >= CHUNK:
            yield part
            part, size = [], 0
    if part:
        yield part


def _length(document: Document) -> int:
    if isinstance(document, str):
        return len(document)
    return sum(len(message["content"]) for message in document)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, identity: str) -> Any:
    """A process loads a tokenizer once; ``identity`` tells one from its successor."""
    return load_tokenizer(folder)


def _encode_chunk(
    tokenizer: Path,
    identity: str,
    template: Template,
    workshop: Workshop,
    compression: str,
    chunk: Chunk,
) -> tuple[str, int, dict[str, Any]]:
    """Write a chunk's parquet file, unless a killed process did; returns source, bytes of
    text and the manifest's entry."""

    def make(aside: Path) -> dict[str, Any]:
        if isinstance(chunk.documents, TokenStore):
            return _adopt(_loaded(tokenizer, identity), chunk, aside, compression)
        try:
            shard = encode(_loaded(tokenizer, identity), template, chunk.documents)
        except UserError as error:
            raise UserError(f"{chunk.file}, {Path(chunk.path).name}: {error}") from None
        return store.save(aside, chunk.path, shard, compression)

    if isinstance(chunk.documents, TokenStore):
        made_from = [identity, compression, chunk.limit, str(chunk.file), fingerprint(chunk.file)]
        size = chunk.file.stat().st_size
        return chunk.source, size, workshop.piece(chunk.path, made_from, make)
    made_from = [identity, write(template), compression, digest(chunk.documents)]
    size = sum(
        len(text.encode())
        for document in chunk.documents
        for text in (
            [document] if isinstance(document, str) else [turn["content"] for turn in document]
        )
    )
    return chunk.source, size, workshop.piece(chunk.path, made_from, make)


def _adopt(tokenizer: Any, chunk: Chunk, aside: Path, compression: str) -> dict[str, Any]:
    """Write a file of tokens as one of the store's; its entry for the manifest."""
    assert isinstance(chunk.documents, TokenStore)
    eos = end_of_sequence(tokenizer)
    pad = eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    parts = chunk.documents.shards(chunk.file, pad, eos, len(tokenizer), chunk.limit)
    masked = chunk.documents.masked(chunk.file)
    return store.save_groups(aside, chunk.path, parts, masked, compression)
