"""Encodes one chunk of a source into a parquet file of tokens, in any process."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from easyllm.data.sources.legacy_store import TokenStore
from easyllm.data.sources.work_units import Chunk
from easyllm.data.store import token_files
from easyllm.data.tokenizers.encode import Vocabulary, encode
from easyllm.data.tokenizers.select_backend import Engine, compared, load
from easyllm.errors import UserError
from easyllm.files import StagingDir
from easyllm.spec.roles import Record, Template
from easyllm.spec.schema import write


class ChunkResult(NamedTuple):
    source: str
    text_bytes: int
    entry: dict[str, Any] | None
    """The file's entry in the manifest; None where no document is left or the ids are inexact."""
    rejected: list[dict[str, Any]]
    chats: dict[str, Any]
    """Counts of its conversations."""
    inexact: str | None
    """Where the engine's ids differ from Hugging Face's; None where they do not."""


def _vocabulary(engine: Engine, tokenizer: Path, identity: str) -> Vocabulary:
    """A process loads an engine once; ``identity`` distinguishes tokenizers in one folder."""
    key = (engine.folder, engine.label, tokenizer, identity)
    if key not in _LOADED:
        _LOADED.clear()
        _LOADED[key] = load(engine, tokenizer)
    return _LOADED[key]


_LOADED: dict[Any, Vocabulary] = {}


def encode_chunk(
    engine: Engine,
    tokenizer: Path,
    identity: str,
    template: Template,
    staging: StagingDir,
    compression: str,
    chunk: Chunk,
) -> ChunkResult:
    """Write a chunk's parquet file, unless an earlier process that was killed has written it."""

    def make(temporary: Path) -> tuple[Any, ...]:  # a ChunkResult without its source
        if isinstance(chunk.reader, TokenStore):
            entry = _adopt(engine, chunk.reader, chunk, temporary, compression)
            return entry["bytes"], entry, [], {}, None
        vocabulary = _vocabulary(engine, tokenizer, identity)
        records = chunk.read()
        why = None
        if chunk.first and not engine.is_reference:
            documents = (r.document for r in records if isinstance(r, Record))
            texts = (document for document in documents if isinstance(document, str))
            why = compared(engine, vocabulary.encode, texts)
        try:
            encoded = encode(vocabulary, template, [] if why else records)
        except UserError as error:
            raise UserError(f"{chunk.file}, {Path(chunk.path).name}: {error}") from None
        rejected = [
            {"source": chunk.source, "file": str(chunk.file), "line": r.line, "reason": r.reason}
            for r in encoded.rejected
        ]
        if encoded.shard is None:
            temporary.touch()  # a piece is a file, an empty one where no document is left
            return 0, None, rejected, {}, why
        entry = token_files.save(temporary, chunk.path, encoded.shard, compression)
        return encoded.text_bytes, entry, rejected, dataclasses.asdict(encoded.chats), None

    made_from = [identity, engine.label, write(template), compression, chunk.identity()]
    return ChunkResult(chunk.source, *staging.piece(chunk.path, made_from, make))


def _adopt(
    engine: Engine, reader: TokenStore, chunk: Chunk, temporary: Path, compression: str
) -> dict[str, Any]:
    """Write a file of a legacy store as a file of this store; returns its manifest entry."""
    assert isinstance(chunk.file, Path)
    ids = engine.pad_id, engine.eos_id, engine.vocab_size
    parts = reader.shards(chunk.file, *ids, chunk.limit)
    return token_files.save_groups(
        temporary, chunk.path, parts, reader.masked(chunk.file), compression
    )
