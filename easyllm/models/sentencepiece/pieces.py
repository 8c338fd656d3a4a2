"""A SentencePiece model as a ``tokenizers.Tokenizer``: normaliser, pieces, decoder."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from easyllm.models.sentencepiece.charsmap import START, Rules, alternatives, escaped

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of a piece."""
UNIGRAM, BPE = 1, 2
"""Types of a model."""

LETTERS = tuple(map(chr, (0xFDD3, 0xFDD4, 0xFDD5)))
"""Noncharacters that replace the first letters of names, see ``Pieces.hidden``."""

HELD = 0x10F800
"""The first of the private characters that replace symbols while a text is normalised."""

SYMBOLS = 256
"""Most user-defined symbols that are replaced so."""


class Inexact(ValueError):
    """A model for which the package tokenizers cannot give the same ids; the message says why."""


@dataclass(frozen=True)
class Pieces:
    """A model's pieces by type, and its settings. ``proto`` is a ``ModelProto``."""

    proto: Any
    first_only: bool
    """Whether only a text's beginning gets the dummy prefix, and not also the text after a special
    token."""

    def names(self, *types: int) -> list[str]:
        return [piece.piece for piece in self.proto.pieces if piece.type in types]

    @property
    def is_bpe(self) -> bool:
        return bool(self.proto.trainer_spec.model_type == BPE)

    @property
    def prefix(self) -> bool:
        """Whether a space is put before a text."""
        return bool(
            self.proto.normalizer_spec.add_dummy_prefix
            and not self.proto.trainer_spec.treat_whitespace_as_suffix
        )

    @property
    def suffix(self) -> bool:
        """Whether a space is put after a text."""
        return bool(
            self.proto.normalizer_spec.add_dummy_prefix
            and self.proto.trainer_spec.treat_whitespace_as_suffix
        )

    @property
    def space(self) -> str:
        """The character for a space in the pieces."""
        return SPACE if self.proto.normalizer_spec.escape_whitespaces else " "

    @cached_property
    def hidden(self) -> dict[str, str]:
        """Letters of texts, and of the pieces in texts, that are replaced by others.

        Unigram of the package tokenizers finds every entry of its vocabulary in a text, including
        the names of control tokens, bytes and unused pieces, which SentencePiece does not find. So
        one letter of each of these names is replaced in all other pieces.
        """
        if self.is_bpe:
            return {}
        found: dict[str, str] = {}
        normal = set("".join(self.names(NORMAL)))
        for name in self.names(CONTROL, BYTE, UNUSED, UNKNOWN):
            if not set(name) & found.keys():
                if len(found) == len(LETTERS) or name[0] == SPACE:
                    raise Inexact(f"a text may hold {name!r}, which is no piece of text in it")
                # a letter that is in no other piece changes no other piece
                letter = next((x for x in name if x not in normal and x != SPACE), name[0])
                found[letter] = LETTERS[len(found)]
        for symbol in self.names(USER_DEFINED):
            if set(symbol[1:]) & found.keys():
                raise Inexact(f"its symbol {symbol!r} holds a letter that begins special names")
        return found

    def written(self, piece: Any) -> str:
        """A piece as it is in the vocabulary of the package tokenizers."""
        text = str(piece.piece)
        return text.translate(self._hide) if piece.type == NORMAL else text

    @cached_property
    def _hide(self) -> dict[int, str]:
        return str.maketrans(self.hidden)


def tokenizer(pieces: Pieces) -> Any:
    """The tokenizer without special tokens. Raises Inexact."""
    from tokenizers import Tokenizer

    kind = pieces.proto.trainer_spec.model_type
    if kind not in (UNIGRAM, BPE):
        raise Inexact("it divides texts into words or characters, which is not supported")
    made = Tokenizer(_bpe(pieces) if pieces.is_bpe else _unigram(pieces))
    made.normalizer = _normalizer(pieces)
    made.pre_tokenizer = _pre_tokenizer(pieces, made)
    made.decoder = _decoder(pieces)
    return made


def _bpe(pieces: Pieces) -> Any:
    from tokenizers import models

    trainer = pieces.proto.trainer_spec
    return models.BPE(
        vocab={piece.piece: number for number, piece in enumerate(pieces.proto.pieces)},
        merges=_merges(pieces.proto),
        unk_token=trainer.unk_piece,
        fuse_unk=True,
        byte_fallback=trainer.byte_fallback,
        # a symbol is always a separate part, see _pre_tokenizer
        ignore_merges=bool(pieces.names(USER_DEFINED)),
    )


def _merges(proto: Any) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, in SentencePiece's order, by that piece's score."""
    numbers = {p.piece: n for n, p in enumerate(proto.pieces) if p.type == NORMAL}
    ordered = sorted(
        numbers, key=lambda piece: (-proto.pieces[numbers[piece]].score, numbers[piece])
    )
    merges = []
    for piece in ordered:
        splits = ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        merges += sorted(
            (pair for pair in splits if pair[0] in numbers and pair[1] in numbers),
            key=lambda pair: (numbers[pair[0]], numbers[pair[1]]),
        )
    return merges


def _unigram(pieces: Pieces) -> Any:
    from tokenizers import models

    proto = pieces.proto
    highest = max((p.score for p in proto.pieces if p.type == NORMAL), default=0.0)

    def score(piece: Any) -> float:
        if piece.type == USER_DEFINED:  # the score that SentencePiece gives it
            return len(piece.piece.encode()) * highest - 0.1
        return float(piece.score)

    return models.Unigram(
        [(pieces.written(piece), score(piece)) for piece in proto.pieces],
        proto.trainer_spec.unk_id,
        proto.trainer_spec.byte_fallback,
    )


def _normalizer(pieces: Pieces) -> Any:
    """The steps of SentencePiece's Normalizer."""
    from tokenizers import Regex
    from tokenizers import normalizers as n

    spec, space = pieces.proto.normalizer_spec, pieces.space
    rules = _rules(spec.precompiled_charsmap) if spec.precompiled_charsmap else None
    symbols = pieces.names(USER_DEFINED)
    held = _held(symbols, rules)
    # the beginning of a text is marked if steps need it
    begin = START if rules or spec.remove_extra_whitespaces or pieces.suffix else space
    given = pieces.prefix and not pieces.first_only
    steps: list[Any] = [n.Prepend(begin)] if begin == START or given else []
    if pieces.suffix and spec.remove_extra_whitespaces:  # a text of only spaces has no beginning
        blank = {" ", *(key for key, to in rules.found.items() if to == " ")} if rules else {" "}
        steps.append(n.Replace(Regex(rf"\A{START}{alternatives(blank)}*\z"), ""))
    steps += [n.Replace(symbol, place) for symbol, place in held.items()]
    steps += rules.normalizers(s for s in symbols if s not in held) if rules else []
    # user-defined symbols are not touched; all other spaces are
    if spec.remove_extra_whitespaces:
        steps += [n.Replace(Regex(f"(?<={START}) +"), ""), n.Replace(Regex(" {2,}"), " ")]
    if given and begin == START:
        steps.append(n.Replace(START, space))
    if spec.remove_extra_whitespaces:
        steps.append(n.Replace(Regex(f"[ {space}]+\\z"), ""))
    if pieces.suffix:
        steps.append(n.Replace(Regex(r"(?m:(?<=.)\z)"), space))
    if begin == START and not given:
        steps.append(n.Replace(START, ""))
    if space != " ":
        steps.append(n.Replace(" ", space))
    for letter, other in pieces.hidden.items():
        begun = [s[1:] for s in symbols if s[0] == letter]
        kept = f"(?!{alternatives(begun)})" if begun else ""
        steps.append(n.Replace(Regex(f"{escaped(letter)}{kept}"), other))
    steps += [n.Replace(place, symbol.replace(" ", space)) for symbol, place in held.items()]
    return n.Sequence(steps)


@functools.lru_cache(2)  # building them takes seconds
def _rules(charsmap: bytes) -> Rules:
    try:
        return Rules(charsmap)
    except ValueError as error:
        raise Inexact(str(error)) from None


def _held(symbols: list[str], rules: Rules | None) -> dict[str, str]:
    """User-defined symbols that normalisation would change, and their replacements meanwhile."""
    from tokenizers import normalizers as n

    steps = rules.normalizers() if rules else []
    whole = n.Sequence([n.Prepend(START), *steps, n.Replace(START, "")])
    changed = [
        symbol
        for symbol in sorted(symbols, key=len, reverse=True)
        if whole.normalize_str(symbol) != symbol or " " in symbol
    ]
    if len(changed) > SYMBOLS:
        raise Inexact(f"its rules change {len(changed)} of its user-defined symbols")
    return {symbol: chr(HELD + place) for place, symbol in enumerate(changed)}


def _pre_tokenizer(pieces: Pieces, made: Any) -> Any:
    from tokenizers import Regex
    from tokenizers import pre_tokenizers as p

    steps: list[Any] = []
    if pieces.prefix and pieces.first_only:
        # only a pre-tokenizer knows where a text begins. Metaspace adds its replacement if the text
        # does not begin with it; here that is a plain space, of which none is left
        steps.append(p.Metaspace(replacement=" ", prepend_scheme="first", split=False))
        if pieces.space != " ":
            steps.append(p.Metaspace(replacement=pieces.space, prepend_scheme="never", split=False))
    symbols = pieces.names(USER_DEFINED)
    if symbols and pieces.is_bpe:
        found = alternatives(symbol.replace(" ", pieces.space) for symbol in symbols)
        steps.append(p.Split(Regex(found), "isolated"))
        whole = _taken_whole(pieces)
        if whole:
            steps.append(p.Split(Regex(whole), "isolated"))
    if len(steps) > 1:
        return p.Sequence(steps)
    return steps[0] if steps else None


def _taken_whole(pieces: Pieces) -> str:
    """A pattern of where to divide a part with the name of a piece that merging does not make.

    ``ignore_merges`` takes a separate part for the piece of this name, of any type. It is divided
    where SentencePiece divides it, so that the merges do not change.
    """
    from tokenizers import Tokenizer, models

    trainer = pieces.proto.trainer_spec
    plain = Tokenizer(
        models.BPE(
            vocab={piece.piece: number for number, piece in enumerate(pieces.proto.pieces)},
            merges=_merges(pieces.proto),
            unk_token=trainer.unk_piece,
            fuse_unk=False,
            byte_fallback=False,
        )
    )
    tails: dict[str, list[str]] = {}
    for number, piece in enumerate(pieces.proto.pieces):
        if piece.type == USER_DEFINED or len(piece.piece) < 2:
            continue
        tokens = plain.encode(piece.piece, add_special_tokens=False)
        if tokens.ids == [number]:
            continue
        # a run of unknown characters is one token, and stays one if it is not divided
        pairs = zip(tokens.ids, tokens.ids[1:], strict=False)
        known = (set(pair) != {trainer.unk_id} or trainer.byte_fallback for pair in pairs)
        end = next(
            (at[1] for at, is_known in zip(tokens.offsets, known, strict=False) if is_known), 0
        )
        if end:
            tails.setdefault(piece.piece[:end], []).append(piece.piece[end:])
    parts = [f"{escaped(head)}(?={alternatives(tails[head])}\\z)" for head in tails]
    return f"\\A(?:{'|'.join(parts)})" if parts else ""


def _decoder(pieces: Pieces) -> Any:
    from tokenizers import decoders as d

    parts: list[Any] = [d.Replace(other, letter) for letter, other in pieces.hidden.items()]
    if pieces.space != " ":
        parts.append(d.Replace(pieces.space, " "))
    if pieces.proto.trainer_spec.byte_fallback:
        parts.append(d.ByteFallback())
    parts.append(d.Fuse())
    if pieces.prefix or pieces.suffix:
        parts.append(d.Strip(content=" ", left=int(pieces.prefix), right=int(pieces.suffix)))
    return d.Sequence(parts)
