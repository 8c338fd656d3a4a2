"""Tokenizers whose tokens are spelt in characters: SentencePiece's, and Gemma 4's kind."""

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
    UNUSED,
    USER_DEFINED,
    Vocabulary,
    merges_within,
    spelt,
)

HARD = (
    "The quick brown fox jumps over the lazy dog.", "  y =   10\n\n\tif x:\r\n    return  1  ",
    "中文分词测试，標點符號。全角ＡＢＣ１２３！", "日本語のトークナイザー ｶﾞｷﾞ", "한국어 각",
    "Русский текст, Ελληνικά, naïve café", "e\u0301 \u212b ﬁ ½ Ⅷ", "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 𝔘𝔫𝔦",
    "\u0645\u0631\u062d\u0628\u0627 हिन्दी ไทย \u200b\ufeff\u00a0\u3000\x00\x01", "#" * 20, " " * 40,
)  # fmt: skip
"""Texts beside the vocabulary's own on which two tokenizers are compared."""


def tokenizer(found: Vocabulary) -> Any:
    """A ``tokenizers.Tokenizer`` without special tokens. Raises UserError where it would not
    give the ids of SentencePiece."""
    core = _unigram(found) if found.kind == "t5" else _pairs(found)
    if found.kind in ("llama", "t5") and (told := _difference(found, core)):
        raise Unusable(found.file, f"its tokenizer cannot be made exactly: {told}", REMEDY)
    return core


def _pairs(found: Vocabulary) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    merges = found.merges or scored_merges(found)
    complete = set(BYTES) <= {found.tokens[number] for number in found.ids(BYTE)}
    core = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(found.tokens)},
            merges_within(merges, set(found.tokens)),
            unk_token=_unknown(found),
            fuse_unk=True,
            byte_fallback=complete,
        )
    )
    _in_characters(core, found)
    if found.rule.splits:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(split), "isolated") for split in found.rule.splits]
        )
    return core


def _unigram(found: Vocabulary) -> Any:
    from tokenizers import Tokenizer, models

    # the places of tokens that no text gives, as T5's file has them, would lower the score
    # from which that of an unknown character is made
    last = max(number for number, of in enumerate(found.types) if of != UNUSED)
    scored = list(zip(found.tokens, found.scores, strict=True))[: last + 1]
    complete = set(BYTES) <= {found.tokens[number] for number in found.ids(BYTE)}
    unknown = found.special.get("unk")
    core = Tokenizer(models.Unigram(scored, unk_id=unknown, byte_fallback=complete))
    _in_characters(core, found)
    return core


def scored_merges(found: Vocabulary) -> list[tuple[str, str]]:
    """The merges that SentencePiece's scores stand for: of all pairs of tokens that make a
    token, the one whose token has the highest score goes first."""
    normal = found.ids(NORMAL)
    ids = {found.tokens[number]: number for number in normal}
    ranked: list[tuple[float, int, int, int]] = []
    for number in normal:
        token = found.tokens[number]
        for at in range(1, len(token)):
            left, right = ids.get(token[:at]), ids.get(token[at:])
            if left is not None and right is not None:
                ranked.append((-found.scores[number], number, left, right))
    return [(found.tokens[left], found.tokens[right]) for *_, left, right in sorted(ranked)]


def _unknown(found: Vocabulary) -> str | None:
    number = found.special.get("unk")
    return None if number is None else found.tokens[number]


def _in_characters(core: Any, found: Vocabulary) -> None:
    """What comes before the tokens, and behind them."""
    from tokenizers import Regex, decoders, normalizers

    before: list[Any] = []
    if found.charsmap:
        before.append(normalizers.Precompiled(found.charsmap))
    if found.squeezed:
        before += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if found.prefix and not found.suffix:
        before.append(normalizers.Prepend(SPACE))
    before.append(normalizers.Replace(" ", SPACE))
    core.normalizer = normalizers.Sequence(before)
    behind: list[Any] = [
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
    ]  # fmt: skip
    if found.prefix and not found.suffix:
        behind.append(decoders.Strip(" ", 1, 0))
    core.decoder = decoders.Sequence(behind)


def sentencepiece(found: Vocabulary) -> Any:
    """The same vocabulary in SentencePiece's own library."""
    from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2

    messages: Any = sentencepiece_model_pb2
    model = messages.ModelProto()
    kinds = model.trainer_spec
    kinds.model_type = kinds.UNIGRAM if found.kind == "t5" else kinds.BPE
    kinds.byte_fallback = bool(found.ids(BYTE))
    kinds.treat_whitespace_as_suffix = found.suffix
    kinds.unk_id = found.special.get("unk", 0)
    kinds.bos_id, kinds.eos_id = found.special.get("bos", -1), found.special.get("eos", -1)
    kinds.pad_id = -1
    normal = model.normalizer_spec
    normal.add_dummy_prefix, normal.remove_extra_whitespaces = found.prefix, found.squeezed
    normal.precompiled_charsmap = found.charsmap
    for number, token in enumerate(found.tokens):
        of = found.types[number]
        if number == kinds.unk_id:
            of = UNKNOWN
        elif of == UNKNOWN:  # it knows one only
            of = CONTROL
        model.pieces.add(piece=token, score=found.scores[number], type=of)
    processor = SentencePieceProcessor()
    processor.LoadFromSerializedProto(model.SerializeToString())
    return processor


def _difference(found: Vocabulary, core: Any) -> str | None:
    """Where ``core`` gives other ids than SentencePiece, and which; None where nowhere."""
    try:
        right = sentencepiece(found)
    except (RuntimeError, ValueError, TypeError) as error:
        return f"SentencePiece does not take its vocabulary ({error})"
    named = [found.tokens[number] for number in found.ids(CONTROL, USER_DEFINED, UNKNOWN)]
    words = [found.tokens[number].replace(SPACE, " ") for number in found.ids(NORMAL)]
    texts = [text for text in (*HARD, *spelt(words)) if not any(name in text for name in named)]
    for text, ids, coded in zip(
        texts, right.encode(texts), core.encode_batch(texts, add_special_tokens=False), strict=True
    ):
        if ids != coded.ids:
            return f"of {text[:40]!r} it makes {coded.ids[:8]}, and SentencePiece {ids[:8]}"
    return None
