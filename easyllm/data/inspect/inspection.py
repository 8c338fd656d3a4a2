"""A look at what training will read: counts, lengths, how full rows are, and rows as text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np

from easyllm.data.dataset.epochs import Split
from easyllm.data.dataset.packing import Packing
from easyllm.data.dataset.rows import Rows
from easyllm.data.store.shards import UNTRAINED, Int64
from easyllm.data.store.token_cache import open_cache
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec

ROWS = 8
"""Rows shown, spread over the first epoch."""


@dataclass(frozen=True)
class Span:
    """Text of consecutive tokens of a document that are all trained, or all not."""

    text: str
    trained: bool


@dataclass(frozen=True)
class ShownRow:
    index: int
    documents: list[list[Span]]
    padding: int
    """Tokens at its end that are of no document."""


@dataclass(frozen=True)
class Inspection:
    title: str
    seq_len: int
    packing: str
    packings: dict[str, dict[str, float]]
    """For each way of packing, the ``rows`` of an epoch and their ``fill``, from 0 to 1."""
    sources: dict[str, dict[str, Any]]
    """By source: documents, tokens, trained and held-out ones, weight, and its ``share`` of the
    tokens of an epoch, from 0 to 1."""
    histogram: list[tuple[int, int, int]]
    """Shortest and longest length in tokens, and how many documents are between, both ends
    included; each step is twice as wide as the one before."""
    longer_than_a_row: int
    """Number of documents, conversations included."""
    long_conversations: str
    """How many of those are conversations, and what becomes of them."""
    rows: list[ShownRow]
    chats: dict[str, Any]
    """Counts of the conversations, of those that became several documents, and of the tokens
    that these repeat: see ``encode.ChatCounts``."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What the stage's record keeps: plain numbers."""
        counted = ("documents", "tokens", "trained_tokens", "heldout_documents")
        return {
            **{key: sum(source[key] for source in self.sources.values()) for key in counted},
            "seq_len": self.seq_len,
            "packing": self.packing,
            **self.packings[self.packing],
            "packings": self.packings,
            "longer_than_a_row": self.longer_than_a_row,
            "chats": self.chats,
            "sources": self.sources,
            "lengths": [list(step) for step in self.histogram],
        }


def inspect(run: RunSpec) -> Inspection:
    """Look at the rows of the run's token store.

    Raises UserError where the store is absent, damaged or leaves nothing to train on.
    """
    cache, manifest = open_cache(run)
    rows = Rows(run, cache, manifest)
    counts = rows.manifest["sources"]
    weights = {name: source["weight"] for name, source in counts.items()}
    split = Split(
        cache, weights, run.training.evaluate.fraction, run.seed, rows.seq_len,
        run.data.long_conversations,
    )  # fmt: skip
    of_epoch = {
        name: (source["tokens"] - source["heldout_tokens"] - source["dropped_tokens"])
        * source["weight"]
        for name, source in counts.items()
    }
    tokens = sum(of_epoch.values())
    packings = {}
    for packing in get_args(Packing):
        needed = split.per_epoch(packing)
        fill = tokens / (needed * rows.seq_len) if needed else 0.0
        packings[packing] = {"rows": needed, "fill": round(min(fill, 1.0), 6)}
    return Inspection(
        title=run.name,
        seq_len=rows.seq_len,
        packing=run.data.packing,
        packings=packings,
        sources={
            name: source
            | {
                "trained_tokens": manifest["sources"][name]["trained_tokens"],
                "share": round(of_epoch[name] / tokens, 6) if tokens else 0.0,
            }
            for name, source in counts.items()
        },
        histogram=_histogram(split.lengths),
        long_conversations=_long(
            run, sum(source["long_conversations"] for source in counts.values())
        ),
        longer_than_a_row=int(np.count_nonzero(split.lengths > rows.seq_len)),
        rows=list(_shown(run, rows)),
        chats=manifest["chats"],
    )


def _long(run: RunSpec, count: int) -> str:
    if not count:
        return ""
    what = run.data.long_conversations
    if what == "cut_at_turns" and run.data.packing == "concat":
        what = "cut"
    return f"{count:,} of them conversations: {what}"


def _histogram(lengths: Int64) -> list[tuple[int, int, int]]:
    _, widths = np.frexp(lengths)  # lengths from 2**(n - 1) on have n binary digits
    counts = np.bincount(widths)
    first = int(np.flatnonzero(counts)[0])
    return [
        (2**digits // 2, 2**digits - 1, int(counts[digits])) for digits in range(first, len(counts))
    ]


def _shown(run: RunSpec, rows: Rows) -> Iterator[ShownRow]:
    tokenizer = load_tokenizer(RunPaths(run).store.tokenizer)
    indices = np.linspace(0, rows.per_epoch - 1, min(ROWS, rows.per_epoch)).astype(int).tolist()
    with progress("decode rows", len(indices), "row") as bar:
        for index in indices:
            row, filled = rows.sample(index), rows.filled(index)
            begins = np.flatnonzero(row.positions[:filled] == 0)[1:]
            trained = row.labels != UNTRAINED
            documents = [
                list(_spans(tokenizer, ids, mask))
                for ids, mask in zip(
                    np.split(row.input_ids[:filled], begins),
                    np.split(trained[:filled], begins),
                    strict=True,
                )
            ]
            yield ShownRow(index, documents, rows.seq_len - filled)
            bar.update()


def _spans(tokenizer: Any, ids: Int64, trained: Any) -> Iterator[Span]:
    """A document's text, cut where training begins or ends."""
    ends = [*(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    shown = 0
    for end in ends:
        text = tokenizer.decode(ids[:end].tolist(), clean_up_tokenization_spaces=False)
        if end < len(ids):  # a character of which only the first bytes are there continues
            text = text.rstrip("\ufffd")
        if len(text) > shown:
            yield Span(text[shown:], bool(trained[end - 1]))
            shown = len(text)
