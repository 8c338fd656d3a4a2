"""From documents to token ids."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from easyllm.data.store.shards import Int32, Int64, Shard, join
from easyllm.errors import BadRecord, UserError
from easyllm.files import read_json
from easyllm.spec.roles import ChatDocument, Record, Rejected, Template

if TYPE_CHECKING:
    from easyllm.data.tokenizers.backends import Encode

BATCH = 1 << 20
"""About how many bytes of text are encoded at once."""

GENERIC = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Names of transformers' class that takes a ``tokenizer.json`` as it is."""


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer in ``folder``. Raises UserError where it cannot be loaded."""
    try:
        tokenizer = _class(folder).from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise UserError(
            f"the tokenizer in {folder} cannot be loaded: {error}; give another data.tokenizer.path"
        ) from None
    if tokenizer.is_fast:
        # a tokenizer.json may ask for either, which would cut documents or pad them
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def _class(folder: Path) -> Any:
    try:
        named = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    except (OSError, ValueError):
        named = None
    if named in GENERIC and (folder / "tokenizer.json").is_file():
        # the class that AutoTokenizer takes, without the two seconds in which it imports torch
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a process holds it."""

    encode: Encode
    """Texts to ids and offsets, by the engine that was chosen."""
    eos_id: int
    folder: Path

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The transformers tokenizer, which templates need; loaded with the first conversation."""
        return load_tokenizer(self.folder)


def by_transformers(tokenizer: Any) -> Encode:
    """An ``Encode`` function, as encoders have, of a tokenizer that is Python code."""

    def encode(texts: list[str]) -> tuple[Int32, Int64]:
        rows = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        shard = _shard(rows)
        return shard.ids, shard.offsets

    return encode


@dataclass(frozen=True)
class Encoded:
    """What became of the records of a chunk."""

    shard: Shard | None
    """None where no document is left."""
    rejected: list[Rejected]
    """In the order of their lines."""
    text_bytes: int
    """Bytes of the documents' text in UTF-8."""
    chats: ChatCounts
    """What became of the conversations among them."""


@dataclass
class ChatCounts:
    """Conversations, and what their template made of them."""

    conversations: int = 0
    unrolled: int = 0
    """Conversations that became several documents, because their template writes earlier turns
    differently once there is a later one."""
    repeated_tokens: int = 0
    """Tokens of those documents that are in an earlier one too."""
    arguments: dict[str, int] = field(default_factory=dict)
    """The number of answers by the arguments, as JSON, that the template got only for them."""

    def add(self, documents: Sequence[ChatDocument]) -> None:
        """Count the documents of one conversation."""
        self.conversations += 1
        if len(documents) > 1:
            self.unrolled += 1
            whole = max(len(document.ids) for document in documents)
            self.repeated_tokens += sum(len(document.ids) for document in documents) - whole
        for document in documents:
            for arguments in document.arguments:
                self.arguments[arguments] = self.arguments.get(arguments, 0) + 1

    def merge(self, other: ChatCounts) -> None:
        self.conversations += other.conversations
        self.unrolled += other.unrolled
        self.repeated_tokens += other.repeated_tokens
        for arguments, count in other.arguments.items():
            self.arguments[arguments] = self.arguments.get(arguments, 0) + count


def encode(
    vocabulary: Vocabulary, template: Template, records: Sequence[Record | Rejected]
) -> Encoded:
    """The documents as token ids, each text followed by the end-of-sequence token.

    In a shard that has only texts every token is trained. A conversation that the template cannot
    express, or that has no answer to train, is rejected.
    """
    rejected = [record for record in records if isinstance(record, Rejected)]
    made: list[Shard] = []
    text_bytes = 0
    chats = ChatCounts()
    for batch, size in _batches([record for record in records if isinstance(record, Record)]):
        text_bytes += size
        for are_texts, run in itertools.groupby(batch, lambda r: isinstance(r.document, str)):
            if are_texts:
                made.append(_texts(vocabulary, [record.document for record in run]))  # type: ignore[misc]
                continue
            conversations, bad, lost = _conversations(vocabulary, template, run, chats)
            rejected += bad
            text_bytes -= lost
            if conversations is not None:
                made.append(conversations)
    rejected.sort(key=lambda record: record.line)
    return Encoded(join(made) if made else None, rejected, text_bytes, chats)


def _batches(records: Sequence[Record]) -> Iterator[tuple[Sequence[Record], int]]:
    """The records, a few at a time, with their bytes.

    Few, because what tokenizers return takes 100 bytes a token.
    """
    first = size = 0
    for place, record in enumerate(records):
        size += record.size
        if size >= BATCH:
            yield records[first : place + 1], size
            first, size = place + 1, 0
    if first < len(records):
        yield records[first:], size


def _texts(vocabulary: Vocabulary, texts: list[str]) -> Shard:
    ids, offsets = vocabulary.encode(texts)
    return Shard(
        np.insert(ids, offsets[1:], np.int32(vocabulary.eos_id)),
        offsets + np.arange(len(offsets)),
    )


def _conversations(
    vocabulary: Vocabulary, template: Template, records: Iterator[Record], chats: ChatCounts
) -> tuple[Shard | None, list[Rejected], int]:
    """The encoded conversations, the rejected ones, and the bytes of the rejected ones."""
    rows, masks, rejected, lost = [], [], [], 0
    for record in records:
        try:
            assert not isinstance(record.document, str)
            documents = template.encode(vocabulary.tokenizer, record.document)
            if not documents:
                raise BadRecord("the conversation has no answer to train")
        except BadRecord as error:
            rejected.append(Rejected(record.line, str(error)))
            lost += record.size
            continue
        chats.add(documents)
        for document in documents:
            rows.append(document.ids)
            masks += document.trained
    return (_shard(rows, np.array(masks, np.bool_)) if rows else None), rejected, lost


def _shard(rows: Sequence[Sequence[int]], trained: Any = None) -> Shard:
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    ids = np.fromiter(itertools.chain.from_iterable(rows), np.int32, offsets[-1])
    return Shard(ids, offsets, trained)
