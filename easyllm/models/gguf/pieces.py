"""Tokenizers whose tokens are written in characters: SentencePiece's, and those like Gemma 4's."""

from __future__ import annotations

from typing import Any

from easyllm.errors import Unusable
from easyllm.models.gguf.vocabulary import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    REMEDY,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    merges_within,
    spelt,
)
from easyllm.models.sentencepiece.pieces import Inexact, Pieces
from easyllm.models.sentencepiece.pieces import tokenizer as of_sentencepiece

HARD = (
    "The quick brown fox jumps over the lazy dog.", "  y =   10\n\n\tif x:\r\n    return  1  ",
    "中文分词测试，標點符號。全角ＡＢＣ１２３！", "日本語のトークナイザー ｶﾞｷﾞ", "한국어 각",
    "Русский текст, Ελληνικά, naïve café", "e\u0301 \u212b ﬁ ½ Ⅷ", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 𝔘𝔫𝔦",
    "\u0645\u0631\u062d\u0628\u0627 हिन्दी ไทย \u200b\ufeff\u00a0\u3000\x00\x01", "#" * 20, " " * 40,
)  # fmt: skip
"""Texts, besides those of the vocabulary, on which two tokenizers are compared."""


def tokenizer(found: Vocabulary) -> Any:
    """A ``tokenizers.Tokenizer`` without special tokens. Raises Unusable where it would not
    give the ids of SentencePiece."""
    if found.kind not in ("llama", "t5"):
        return _merged(found)
    proto = model(found)
    try:
        core = of_sentencepiece(Pieces(proto, first_only=False))
    except Inexact as error:
        difference: str | None = str(error)
    else:
        difference = _difference(found, proto, core)
    if difference:
        raise Unusable(found.file, f"its tokenizer cannot be made exactly: {difference}", REMEDY)
    return core


def _merged(found: Vocabulary) -> Any:
    """The tokenizer from the merges that the file holds."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    assert found.merges is not None, "checked with the vocabulary"
    unknown = found.special.get("unk")
    core = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(found.tokens)},
            merges_within(found.merges, set(found.tokens)),
            unk_token=None if unknown is None else found.tokens[unknown],
            fuse_unk=True,
            byte_fallback=set(BYTES) <= {found.tokens[number] for number in found.ids(BYTE)},
        )
    )
    core.normalizer = normalizers.Replace(" ", SPACE)
    if found.rule.splits:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated") for split in found.rule.splits]
        )
    core.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return core


def model(found: Vocabulary) -> Any:
    """The vocabulary as a model of the SentencePiece library, a ``ModelProto``."""
    from sentencepiece import sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    proto = messages.ModelProto()
    kinds = proto.trainer_spec
    kinds.model_type = kinds.UNIGRAM if found.kind == "t5" else kinds.BPE
    kinds.byte_fallback = bool(found.ids(BYTE))
    kinds.treat_whitespace_as_suffix = found.suffix
    kinds.unk_id = found.special.get("unk", 0)
    kinds.unk_piece = found.tokens[kinds.unk_id]
    kinds.bos_id, kinds.eos_id = found.special.get("bos", -1), found.special.get("eos", -1)
    kinds.pad_id = -1
    normal = proto.normalizer_spec
    normal.add_dummy_prefix, normal.remove_extra_whitespaces = found.prefix, found.squeezed
    normal.precompiled_charsmap = found.charsmap
    for number, token in enumerate(found.tokens):
        of = found.types[number]
        if number == kinds.unk_id:
            of = UNKNOWN
        elif of in (UNKNOWN, USER_DEFINED):
            # it has only one unknown; user-defined tokens are found before it gets a text
            of = CONTROL
        proto.pieces.add(piece=token, score=found.scores[number], type=of)
    return proto


def _difference(found: Vocabulary, proto: Any, core: Any) -> str | None:
    """A message about a text for which ``core`` gives other ids than SentencePiece; None if there
    is none."""
    from sentencepiece import SentencePieceProcessor

    right = SentencePieceProcessor()
    try:
        right.LoadFromSerializedProto(proto.SerializeToString())
    except (RuntimeError, ValueError, TypeError) as error:
        return f"SentencePiece does not take its vocabulary ({error})"
    named = [found.tokens[number] for number in found.ids(CONTROL, USER_DEFINED, UNKNOWN)]
    words = [found.tokens[number].replace(SPACE, " ") for number in found.ids(NORMAL)]
    texts = [text for text in (*HARD, *spelt(words)) if not any(name in text for name in named)]
    for text, ids, coded in zip(
        texts, right.encode(texts), core.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        if ids != coded.ids:
            return f"from {text[:40]!r} it makes {coded.ids[:8]}, but SentencePiece makes {ids[:8]}"
    return None
