"""Tokens as a client gets them: the text that each adds to the answer, and the token's bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from easyllm.inference.engine_protocol import TokenLogprob

HALF = "\ufffd"
"""What tokenizers write for bytes that are not a character, or not a whole one yet."""
BYTE = re.compile(r"<0x([0-9A-F]{2})>")
"""A piece of SentencePiece that is one byte."""


@dataclass
class TokenText:
    """A token with its natural log-probability.

    The texts of an answer's tokens, joined, are the answer; so are their bytes, where it is
    whole characters. The text of a token that ends within a character is empty, and the
    character is the text of the token that completes it.
    """

    text: str
    bytes: bytes | None
    """None for a special token that is given as an alternative: its text is then its name."""
    logprob: float | None
    """None for the first token of a prompt, which nothing is before."""
    top: list[TokenText] = field(default_factory=list)
    """The likeliest tokens at its place, likeliest first, itself among them."""


class TokenTexts:
    """Gives the tokens of one answer their shares of its text.

    For each token: ``ask``, then ``grow`` with the text that it added. ``would_add`` says what
    another token would have added.
    """

    def __init__(self, tokenizer: Any, would_add: Callable[[int], str]):
        self._bytes = token_bytes(tokenizer)
        self._would_add = would_add
        self._asked = TokenLogprob(0, 0.0)
        self._others: dict[int, TokenText] = {}
        self._held: list[TokenText] = []
        self._halves = 0
        """Tokens since the last character that was completed."""
        self._room = 0
        """Characters of the answer that no token has been given yet."""

    def ask(self, logprob: TokenLogprob) -> None:
        """Note the token that comes next, and those that could have come in its place."""
        self._asked = logprob
        self._others = {
            token: self._other(token, value)
            for token, value in logprob.top
            if token != logprob.token
        }

    def grow(self, new: str) -> None:
        """Note the text that the token has added."""
        asked = self._asked
        own = TokenText(new, self._own(asked.token, new), asked.logprob)
        own.top = [own if token == asked.token else self._others[token] for token, _ in asked.top]
        self._halves = 0 if new else self._halves + bool(own.bytes)
        self._held.append(own)

    def end(self, new: str) -> None:
        """Note the text that was left at the answer's end: half a character is shown then."""
        if self._held:
            self._held[-1].text += new

    def certain(self, grown: int, over: bool) -> list[TokenText]:
        """The tokens whose texts are certain, the answer having grown by ``grown`` characters.

        At the answer's end, ``over``, a stop text cuts the token in which it begins, and tokens
        after it are left out.
        """
        self._room += grown
        given = []
        while self._held and (over or any(one.text for one in self._held)):
            one = self._held[0]
            if len(one.text) > self._room:
                if not over or not self._room:
                    break
                one.text = one.text[: self._room]
                one.bytes = one.text.encode()
            elif over and not self._room and any(one.text for one in self._held):
                break
            self._room -= len(one.text)
            given.append(self._held.pop(0))
        return given

    def _own(self, token: int, new: str) -> bytes:
        known = self._bytes(token)
        if known is not None:
            # decoders of SentencePiece strip a blank at the beginning, also where it is a byte
            return b"" if known.isspace() and not (new or self._halves) else known
        # bytes before it that turned out to be no character are shown together with it
        return new.removeprefix(HALF * self._halves).encode()

    def _other(self, token: int, logprob: float) -> TokenText:
        if name := self._bytes.special.get(token):
            return TokenText(name, None, logprob)
        new = self._would_add(token)
        return TokenText(new, self._own(token, new), logprob)


class TokenBytes:
    """The bytes that tokens represent."""

    def __init__(self, tokenizer: Any):
        self.special: dict[int, str] = {}
        """Names of the tokens that answers leave out."""
        self._added: dict[int, bytes] = {}
        for token, added in tokenizer.added_tokens_decoder.items():
            if added.special:
                self.special[token] = added.content
            else:
                self._added[token] = added.content.encode()
        self._piece = tokenizer.convert_ids_to_tokens
        decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
        kinds = set(_kinds(json.loads(decoder.__getstate__()))) if decoder else {"ByteFallback"}
        self._alphabet = byte_alphabet() if "ByteLevel" in kinds else None
        self._fallback = "ByteFallback" in kinds

    def __call__(self, token: int) -> bytes | None:
        """The bytes that a token adds at any place; None where they depend on its place."""
        if token in self.special:
            return b""
        if token in self._added:
            return self._added[token]
        piece = self._piece(token)
        if piece is None:  # of the model, and not of the tokenizer
            return b""
        if isinstance(piece, bytes):
            return piece
        if self._alphabet is not None:
            try:
                return bytes(self._alphabet[character] for character in piece)
            except KeyError:
                return None
        found = BYTE.fullmatch(piece) if self._fallback else None
        return bytes([int(found[1], 16)]) if found else None


@lru_cache(maxsize=4)
def token_bytes(tokenizer: Any) -> TokenBytes:
    return TokenBytes(tokenizer)


@cache
def byte_alphabet() -> dict[str, int]:
    """The bytes that GPT-2's characters represent: a printable one represents itself, the
    others, in their order, the bytes that are left."""
    from tokenizers.pre_tokenizers import ByteLevel

    characters = sorted(ByteLevel.alphabet())
    own = {character: ord(character) for character in characters if ord(character) < 256}
    left = [byte for byte in range(256) if byte not in own.values()]
    return own | dict(zip(characters[len(own) :], left, strict=True))


def _kinds(decoder: Any) -> Iterator[str]:
    """Types of a decoder and of those that it is made of."""
    yield decoder["type"]
    for part in decoder.get("decoders", ()):
        yield from _kinds(part)
