"""From documents to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data.chunks import length
from easyllm.data.shards import Bool, Int32, Shard
from easyllm.data.templates import end_of_sequence
from easyllm.errors import BadRecord, UserError
from easyllm.spec.roles import Record, Rejected, Template

BATCH = 1 << 20
"""Bytes of text encoded at once, about."""


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer in ``folder``. Raises UserError where it cannot be loaded."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded: {error}; give another data.tokenizer.path"
        ) from None
    if tokenizer.is_fast:
        # a tokenizer.json may ask for either, and cut documents or pad them
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True)
class Encoded:
    """What became of the records of a chunk."""

    shard: Shard | None
    """None where no document is left."""
    rejected: list[Rejected]
    """In the order of their lines."""
    text_bytes: int
    """Bytes of the documents' text in UTF-8."""


def encode(tokenizer: Any, template: Template, records: Sequence[Record | Rejected]) -> Encoded:
    """The documents as token ids, each text followed by the end-of-sequence token.

    A shard of texts only has every token trained. A conversation that the template cannot
    express, or that has no answer to train, is rejected.
    """
    rejected = [record for record in records if isinstance(record, Rejected)]
    ids: list[Int32] = []
    trained: list[Bool | None] = []
    text_bytes = 0
    for batch in _batches([record for record in records if isinstance(record, Record)]):
        texts = iter(
            _encode_texts(tokenizer, [r.document for r in batch if isinstance(r.document, str)])
        )
        for record in batch:
            if isinstance(record.document, str):
                ids.append(next(texts))
                trained.append(None)
            else:
                try:
                    tokens, mask = template.encode(tokenizer, record.document)
                    if not any(mask):
                        raise BadRecord("the conversation has no answer to train")
                except BadRecord as error:
                    rejected.append(Rejected(record.line, str(error)))
                    continue
                ids.append(np.array(tokens, np.int32))
                trained.append(np.array(mask, np.bool_))
            text_bytes += length(record.document)
    rejected.sort(key=lambda record: record.line)
    if not ids:
        return Encoded(None, rejected, 0)
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(tokens) for tokens in ids], out=offsets[1:])
    masks = None
    if any(mask is not None for mask in trained):
        masks = np.concatenate(
            [
                np.ones(len(tokens), np.bool_) if mask is None else mask
                for tokens, mask in zip(ids, trained, strict=True)
            ]
        )
    return Encoded(Shard(np.concatenate(ids), offsets, masks), rejected, text_bytes)


def _batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """The records, a few at a time: what tokenizers return takes 100 bytes a token."""
    first = size = 0
    for place, record in enumerate(records):
        size += length(record.document)
        if size >= BATCH:
            yield records[first : place + 1]
            first, size = place + 1, 0
    yield records[first:]


def _encode_texts(tokenizer: Any, texts: list[str]) -> list[Int32]:
    if not texts:
        return []
    eos = end_of_sequence(tokenizer)
    # names of special tokens in a text are words about them, not the tokens themselves
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        rows = [e.ids for e in backend.encode_batch_fast(texts, add_special_tokens=False)]
    else:
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [np.array([*row, eos], np.int32) for row in rows]
