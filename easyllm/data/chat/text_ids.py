"""Token ids of texts that share their beginnings, each part of them encoded once."""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterable
from typing import Any

REMEMBERED = 1 << 22
"""Characters of parts whose ids are kept."""


def token_pattern(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches the texts of tokens as a tokenizer finds them: the longest of those that begin at
    a place."""
    longest_first = sorted(set(texts) - {""}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class TextIds:
    """Token ids of rendered conversations, in which the names of special tokens are these tokens.

    A tokenizer takes special tokens out of a text before it encodes the rest, so the text between
    two of them has the same ids in every text. A part that begins with a special token is
    therefore encoded once, however many contexts of a conversation contain it.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.tokens = len(tokenizer)
        self.known: dict[str, list[int]] = {}
        self.size = 0
        tokens = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
        # the others depend on the text beside them
        self.breaks = {
            text
            for text, token in tokens.items()
            if token.special and not (token.lstrip or token.single_word or token.normalized)
        }
        self.names = token_pattern(tokens)

    def parts(self, text: str) -> list[str]:
        """The text cut before each special token."""
        if not self.tokenizer.is_fast:
            return [text] if text else []
        places = [m.start() for m in self.names.finditer(text) if m[0] in self.breaks]
        edges = [0, *(place for place in places if place), len(text)]
        return [text[a:b] for a, b in itertools.pairwise(edges) if a < b]

    def of(self, text: str) -> list[int]:
        """The ids that the tokenizer gives the whole text, without adding any."""
        parts = self.parts(text)
        missing = list(dict.fromkeys(part for part in parts if part not in self.known))
        if missing:
            if self.size > REMEMBERED:
                self.known.clear()
                self.size = 0
                missing = list(dict.fromkeys(parts))
            self.size += sum(map(len, missing))
            self.known.update(zip(missing, self._encoded(missing), strict=True))
        return [token for part in parts for token in self.known[part]]

    def after(self, context: str, text: str) -> list[int]:
        """The ids of ``text`` after the ids of ``context``, which do not change.

        Encoded together, the two may merge at their boundary, and the context would no longer be
        what a server gets. Encoded separately, ``text`` may get a blank before it from a
        SentencePiece vocabulary. So the ids of both together are taken where the context's ids
        do not change, otherwise those of ``text`` alone.
        """
        tail = self.parts(context)[-1:]
        begun = self.of("".join(tail))
        joined = self.of("".join(tail) + text)
        if joined[: len(begun)] == begun:
            return joined[len(begun) :]
        return self.of(text)

    def _encoded(self, texts: list[str]) -> list[list[int]]:
        if self.tokenizer.is_fast:
            backend = self.tokenizer.backend_tokenizer
            backend.encode_special_tokens = False
            return [row.ids for row in backend.encode_batch_fast(texts, add_special_tokens=False)]
        made = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=False)
        rows: list[list[int]] = made["input_ids"]
        return rows


def text_ids(tokenizer: Any) -> TextIds:
    """The ``TextIds`` of a tokenizer, kept for the tokenizer's lifetime."""
    found = _KNOWN.get(tokenizer)
    if found is None or found.tokens != len(tokenizer):
        found = _KNOWN[tokenizer] = TextIds(weakref.proxy(tokenizer))
    return found


_KNOWN: weakref.WeakKeyDictionary[Any, TextIds] = weakref.WeakKeyDictionary()
