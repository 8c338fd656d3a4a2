"""The documents and conversations that are followed from the store to the served model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from easyllm.data.sources.work_units import Chunk, chunks
from easyllm.data.store import manifest as manifests
from easyllm.data.store import shards
from easyllm.errors import BadRecord, UserError
from easyllm.paths import RunPaths
from easyllm.spec.roles import ChatDocument, Message, Record
from easyllm.spec.run import RunSpec

TEXTS = (
    "A language model predicts the next token of a text, given those before it.",
    "def area(width, height):\n    return width * height  # 3 x 4 = 12\n",
    '  Prices rose by 12.5 % in 2024, to 1,299.00; "why?", asked Zoë.\n\n\tNobody knew.',
    "Die Straße führt über den Fluß. 東京は日本の首都です。 Привет, мир!",
)
"""Texts for a model without a store."""
CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is the capital of France?"}],
    [
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello, how can I help?"},
        {"role": "user", "content": "  Write 3 lines\nabout rain. "},
    ],
)
"""Conversations for a model without a store, each before an answer."""


@dataclass(frozen=True)
class Document:
    """Token ids, and whether each is trained."""

    name: str
    ids: list[int]
    trained: list[bool]


@dataclass
class Samples:
    texts: dict[str, str] = field(default_factory=dict)
    """Texts, and the words of messages, by name."""
    text_ids: dict[str, list[int]] = field(default_factory=dict)
    """Their tokens by the run's tokenizer, without any that it adds."""
    conversations: dict[str, list[Message]] = field(default_factory=dict)
    """By name, whole."""
    stored: dict[str, list[Document]] = field(default_factory=dict)
    """What the store holds of each text and conversation."""
    encoded: dict[str, list[Document]] = field(default_factory=dict)
    """What the run's tokenizer and template make of them now."""
    others: list[Document] = field(default_factory=list)
    """Documents without a text: held-out ones, and those of sources that hold tokens."""
    missing: str = ""
    """Why the texts of the store are not there."""

    @property
    def documents(self) -> list[Document]:
        """Those that are given to the model: held-out ones first, which it was not trained on."""
        of_store = [document for found in self.stored.values() for document in found]
        return [*self.others, *of_store]

    def prompts(self) -> dict[str, list[Message]]:
        """The conversations before their last answer."""
        found = {}
        for name, messages in self.conversations.items():
            answers = [n for n, m in enumerate(messages) if m["role"] == "assistant" and n]
            if messages[-1]["role"] != "assistant":
                found[name] = messages
            elif answers:
                found[name] = messages[: answers[-1]]
        return found


def samples(run: RunSpec, tokenizer: Any) -> Samples:
    """The first documents of each source, with what the store holds of them, and the first held-out
    ones. ``tokenizer`` is the store's."""
    manifest = manifests.find(RunPaths(run).store, "tokenize")
    if manifest is None:
        return without_store(tokenizer)
    found = Samples()
    try:
        found.others += _heldout(run)
        for chunk, documents in _chunks(run):
            if chunk.reader is not None:  # tokens, which another program made of texts
                some = enumerate(islice(documents, run.verify.documents), start=1)
                found.others += [replace(one, name=f"{chunk.source} {n}") for n, one in some]
            for record in (one for one in chunk.records if isinstance(one, Record)):
                name = f"{chunk.source} {record.line}"
                _add(run, found, tokenizer, manifest["eos_id"], name, record, documents)
    except (OSError, UserError, shards.Damaged) as error:
        found.missing = str(error)
    if not found.conversations:
        _add_conversations(found, tokenizer)  # the server has a template, whatever was trained
    if not found.texts:
        found.missing = found.missing or "the sources hold tokens, not texts"
        _add_own(found, tokenizer, as_documents=not found.documents)
    return found


def without_store(tokenizer: Any) -> Samples:
    """Texts and conversations of this module, as ``tokenizer`` encodes them."""
    found = Samples(missing="there is no store of this run")
    _add_own(found, tokenizer, as_documents=True)
    _add_conversations(found, tokenizer)
    return found


def _add_own(found: Samples, tokenizer: Any, as_documents: bool) -> None:
    """Add the texts of this module, also for the model where ``as_documents``."""
    for number, text in enumerate(TEXTS, start=1):
        name = f"text {number}"
        ids = _add_text(found, tokenizer, name, text)
        if as_documents:
            found.stored[name] = [Document(name, ids, [True] * len(ids))]


def _add_conversations(found: Samples, tokenizer: Any) -> None:
    for number, messages in enumerate(CONVERSATIONS if tokenizer.chat_template else (), start=1):
        found.conversations[f"conversation {number}"] = list(messages)


def _chunks(run: RunSpec) -> Iterator[tuple[Chunk, Iterator[Document]]]:
    """The first records of each source, with the documents of the store from there on."""
    store = RunPaths(run).store
    few = replace(run, data=replace(run.data, max_documents=run.verify.documents))
    for chunk in chunks(few):
        shard = shards.read(manifests.folder(store, "tokenize") / chunk.path)
        yield chunk, _documents(shard)


def _documents(shard: shards.Shard) -> Iterator[Document]:
    for begin, end in zip(shard.offsets[:-1], shard.offsets[1:], strict=True):
        ids = shard.ids[begin:end].tolist()
        trained = [True] * len(ids) if shard.trained is None else shard.trained[begin:end].tolist()
        yield Document("", ids, trained)


def _add(
    run: RunSpec,
    found: Samples,
    tokenizer: Any,
    eos_id: int,
    name: str,
    record: Record,
    documents: Iterator[Document],
) -> None:
    whole: Any = record.document
    if isinstance(whole, str):
        ids = _add_text(found, tokenizer, name, whole)
        made = [ChatDocument([*ids, eos_id], [True] * (len(ids) + 1))]
    else:
        try:
            made = run.data.template.encode(tokenizer, whole)
        except BadRecord:
            return  # it is not in the store
        if not made:
            return
        found.conversations[name] = list(whole)
        for number, message in enumerate(whole, start=1):
            _add_text(found, tokenizer, f"{name}, message {number}", message["content"])
    found.encoded[name] = [Document(name, d.ids, d.trained) for d in made]
    there = islice(documents, len(made))
    found.stored[name] = [replace(document, name=name) for document in there]


def _add_text(found: Samples, tokenizer: Any, name: str, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True)[
        "input_ids"
    ]
    found.texts[name], found.text_ids[name] = text, ids
    return ids


def _heldout(run: RunSpec) -> Iterator[Document]:
    file: Path = RunPaths(run).heldout
    if not file.is_file():
        return
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, run.verify.documents), start=1):
            values = json.loads(line)
            ids, labels = values["input_ids"], values["labels"]
            # the first token is not trained because nothing predicts it
            yield Document(f"held out {number}", ids, [label != -100 for label in labels])


def shortened(documents: Sequence[Document], tokens: int) -> list[Document]:
    """The first ``tokens`` tokens of those with at least two."""
    return [
        Document(d.name, d.ids[:tokens], d.trained[:tokens]) for d in documents if len(d.ids) > 1
    ]
