"""Conversations longer than a row: cut where a turn begins, or left out."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from easyllm.data.dataset.packing import Packing
from easyllm.data.store.shards import Int32, Int64, gather
from easyllm.data.store.token_cache import Cache

LongConversations = Literal["cut_at_turns", "cut", "drop"]

LOOKED_AT = 1000
"""Conversations of a source that are read for what its template writes after a turn's end."""


@dataclass(frozen=True)
class Pieces:
    """The documents of a store, each as the pieces that are packed, none where it is dropped."""

    starts: Int64
    lengths: Int64
    """[pieces], in tokens."""
    first: Int64
    """[documents + 1]: the first piece of each document."""

    def of(self, documents: Int64) -> tuple[Int64, Int64]:
        """Starts and lengths of the pieces of documents, in their order."""
        first = self.first[documents]
        places, _ = gather(first, self.first[documents + 1] - first)
        return self.starts[places], self.lengths[places]


def longer_than(cache: Cache, seq_len: int) -> dict[str, Int64]:
    """By source, the conversations longer than a row: documents with untrained tokens.

    Reads the masks of documents longer than a row only.
    """
    found = {}
    for name, (first, end) in cache.sources.items():
        places = np.zeros(0, np.int64)
        if name in cache.conversations and cache.trained is not None:
            offsets = np.asarray(cache.offsets[first : end + 1])
            places = np.flatnonzero(np.diff(offsets) > seq_len)
            asked = [not cache.trained[offsets[i] : offsets[i + 1]].all() for i in places]
            places = first + places[np.array(asked, np.bool_)]
        found[name] = places
    return found


def pieces_of(
    cache: Cache, long: Mapping[str, Int64], seq_len: int, packing: Packing, what: LongConversations
) -> Pieces | None:
    """The documents with their ``long`` conversations cut at turns or dropped; None where each
    document is one piece, which packing cuts where it must."""
    documents = np.concatenate(list(long.values()))
    if not len(documents) or what == "cut" or (what, packing) == ("cut_at_turns", "concat"):
        return None
    starts, lengths = np.asarray(cache.offsets[:-1]), np.diff(cache.offsets)
    found: list[Int64] = []
    if what == "cut_at_turns":
        for name, places in long.items():
            between = _between_turns(cache, *cache.sources[name]) if len(places) else None
            found += [
                np.array(list(_cut(_turns(cache, document, between), seq_len)), np.int64)
                for document in places.tolist()
            ]
    counts = np.ones(len(lengths), np.int64)
    counts[documents] = [len(cut) for cut in found] if found else 0
    owner = np.repeat(np.arange(len(lengths)), counts)
    starts, lengths = starts[owner], lengths[owner]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
    if found:
        at, _ = gather(offsets[documents], counts[documents])
        begins, sizes = np.concatenate(found).T
        starts[at] += begins
        lengths[at] = sizes
    return Pieces(starts, lengths, offsets)


def _cut(turns: list[int], seq_len: int) -> Iterator[tuple[int, int]]:
    """First token and length of each piece: as many whole turns as a row holds.

    ``turns`` are the places at which a piece may begin, and then the conversation's end.
    """
    at, end = 0, turns[-1]
    while at < end:
        until = turns[bisect.bisect_right(turns, at + seq_len) - 1]
        if until <= at:  # question and answer are longer than a row
            until = min(at + seq_len, end)
        yield at, until - at
        at = until


def _turns(cache: Cache, document: int, between: Int32 | None) -> list[int]:
    """Where the speaker after an answer begins, and where the conversation ends.

    ``between`` are the tokens after the end of a turn that still belong to it.
    """
    assert cache.trained is not None
    start, end = cache.offsets[document : document + 2].tolist()
    trained = cache.trained[start:end]
    ends = np.flatnonzero(trained[:-1] & ~trained[1:]) + 1
    if between is not None:
        ids = cache.tokens[start:end]
        places = ends[:, None] + np.arange(len(between))
        follows = (ids[np.minimum(places, end - start - 1)] == between).all(axis=1)
        ends = ends + len(between) * follows
    return [0, *ends[ends < end - start].tolist(), end - start]


def _between_turns(cache: Cache, first: int, end: int) -> Int32 | None:
    """Tokens that a source's template writes after the end of a turn, as ChatML does a line
    break: the fewest untrained ones that a conversation ends with; None where there are none."""
    assert cache.trained is not None
    fewest: Int32 | None = None
    for document in range(first, min(first + LOOKED_AT, end)):
        start, stop = cache.offsets[document : document + 2].tolist()
        trained = np.flatnonzero(cache.trained[start:stop])
        if len(trained) and (fewest is None or stop - start - trained[-1] - 1 < len(fewest)):
            fewest = cache.tokens[start + int(trained[-1]) + 1 : stop]
            if not len(fewest):
                return None
    return fewest
