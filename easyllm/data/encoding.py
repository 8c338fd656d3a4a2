"""From documents to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from easyllm.data.shards import Bool, Int32, Shard
from easyllm.data.templates import end_of_sequence
from easyllm.errors import UserError
from easyllm.spec.roles import Template

Document = str | Sequence[Mapping[str, str]]

BATCH = 1 << 20
"""Characters of text encoded at once, about."""


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


def encode(tokenizer: Any, template: Template, documents: Sequence[Document]) -> Shard:
    """The documents as token ids, each text followed by the end-of-sequence token.

    A shard of texts only has every token trained. Raises UserError, naming the document
    by its place from 1, for a conversation that cannot be encoded.
    """
    ids: list[Int32] = []
    trained: list[Bool] = []
    for first, batch in _batches(documents):
        texts = iter(_encode_texts(tokenizer, [text for text in batch if isinstance(text, str)]))
        for number, document in enumerate(batch, first + 1):
            if isinstance(document, str):
                ids.append(next(texts))
                trained.append(np.ones(len(ids[-1]), np.bool_))
                continue
            try:
                tokens, mask = template.encode(tokenizer, document)
                if not any(mask):
                    raise UserError("has no answer to train; remove it")
            except UserError as error:
                raise UserError(f"conversation {number}: {error}") from None
            ids.append(np.array(tokens, np.int32))
            trained.append(np.array(mask, np.bool_))
    offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum([len(tokens) for tokens in ids], out=offsets[1:])
    texts_only = all(isinstance(document, str) for document in documents)
    return Shard(np.concatenate(ids), offsets, None if texts_only else np.concatenate(trained))


def _batches(documents: Sequence[Document]) -> Iterator[tuple[int, Sequence[Document]]]:
    """The documents, a few at a time: what tokenizers returns takes 100 bytes a token."""
    first = size = 0
    for place, document in enumerate(documents):
        size += len(document)
        if size >= BATCH:
            yield first, documents[first : place + 1]
            first, size = place + 1, 0
    yield first, documents[first:]


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
