"""Writes a tokenizer in Hugging Face's format as metadata of GGUF.

The metadata are read back and compared with the tokenizer, so that a file never holds one that
llama.cpp would run differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from easyllm.errors import Unusable, UserError
from easyllm.models.gguf import tokenizer as reading
from easyllm.models.gguf.header import Header
from easyllm.models.gguf.splitting import RULES, Rule
from easyllm.models.gguf.vocabulary import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    SPACE,
    SPECIAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    vocabulary,
)

REMEDY = "give export.format=safetensors"
FIRST = ("gpt-2", "llama-bpe", "qwen2", "smollm", "gpt-4o", "deepseek-v3")
"""Names that are preferred to other names of the same rule."""


def metadata(tokenizer: Any, size: int, texts: Sequence[str]) -> tuple[dict[str, Any], str | None]:
    """The keys below ``tokenizer.`` for a fast tokenizer of transformers and a model of ``size``
    tokens, and a message about different ids of llama.cpp around special tokens, None if there are
    none.

    The tokenizers are compared on ``texts``; every id of texts without special tokens is the same.
    Raises UserError for a tokenizer that llama.cpp cannot run.
    """
    if not tokenizer.is_fast:
        raise _cannot("it has no tokenizer.json")
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    if described["model"]["type"] != "BPE":
        raise _cannot(f"it is no byte-pair encoding but {described['model']['type']}")
    if not described["model"]["merges"]:
        raise _cannot("it has no merges")
    byte_level = "ByteLevel" in json.dumps(described["pre_tokenizer"])
    found = (
        _byte_level(tokenizer, described, texts) if byte_level else _pieces(tokenizer, described)
    )
    found |= _tokens(tokenizer, size, found) | _special(tokenizer) | _templates(tokenizer)
    return found, _compared(tokenizer, found, texts)


def _byte_level(tokenizer: Any, described: Mapping[str, Any], texts: Sequence[str]) -> Any:
    merges = described["model"]["merges"]
    return {
        "ggml.model": "gpt2",
        "ggml.pre": _name(tokenizer, described, texts),
        "ggml.merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
    }


def _name(tokenizer: Any, described: Mapping[str, Any], texts: Sequence[str]) -> str:
    """The name of the rule that splits ``texts`` as the tokenizer does."""
    whole = bool(described["model"].get("ignore_merges"))
    pieces = list(_cut(tokenizer.backend_tokenizer, texts))
    # among rules that split text in the same way, those that treat whole words alike come first
    names = sorted(
        (name for name, rule in RULES.items() if not rule.characters),
        key=lambda name: (RULES[name].whole != whole, name not in FIRST),
    )
    seen: dict[Rule, bool] = {}
    for name in names:
        rule = RULES[name]
        if rule not in seen:
            cut = _cut(_ruled(rule), texts)
            seen[rule] = all(a == b for a, b in zip(pieces, cut, strict=True))
        if seen[rule]:
            return name
    raise _cannot(
        f"no pre-tokenizer that llama.cpp knows cuts text as its own does "
        f"({json.dumps(described['pre_tokenizer'])[:300]})"
    )


def _ruled(rule: Rule) -> Any:
    from tokenizers import Tokenizer, models

    made = Tokenizer(models.BPE())
    reading.cut(made, rule)
    return made


def _cut(core: Any, texts: Sequence[str]) -> Iterator[list[str]]:
    normal, cut = core.normalizer, core.pre_tokenizer
    for text in texts:
        whole = normal.normalize_str(text) if normal else text
        yield [piece for piece, _ in cut.pre_tokenize_str(whole)]


def _pieces(tokenizer: Any, described: Mapping[str, Any]) -> dict[str, Any]:
    """The keys for a tokenizer like SentencePiece's, for which llama.cpp takes scores instead of
    merges."""
    vocabulary: Mapping[str, int] = described["model"]["vocab"]
    if not set(BYTES) <= vocabulary.keys():
        raise _cannot("it is neither byte-level nor has it a token for each byte")
    merges = described["model"]["merges"]
    rank: dict[str, int] = {}
    for number, pair in enumerate(merges):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        rank.setdefault(left + right, number)
    scores = {token: -float(rank.get(token, len(merges))) for token in vocabulary}
    begun = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).tokens
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.add_space_prefix": bool(begun) and begun[0].startswith(SPACE),
        "ggml.scores": scores,
    }


def _tokens(tokenizer: Any, size: int, found: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens in the order of their ids, with type and score; ids without a token are unused."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    if len(by_id) and max(by_id) >= size:
        raise _cannot(f"it has tokens up to {max(by_id)}, but the model has {size}")
    added = tokenizer.added_tokens_decoder
    unknown = tokenizer.unk_token_id
    pieces = found["ggml.model"] == "llama"
    tokens, types = [], []
    for number in range(size):
        token = by_id.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            types.append(UNUSED)
            continue
        tokens.append(token)
        if pieces and number == unknown:
            types.append(UNKNOWN)
        elif number in added:
            types.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            types.append(BYTE if pieces and token in BYTES else NORMAL)
    made: dict[str, Any] = {"ggml.tokens": tokens, "ggml.token_type": types}
    if pieces:
        scores = found["ggml.scores"]
        made["ggml.scores"] = [scores.get(token, 0.0) for token in tokens]
    return made


def _special(tokenizer: Any) -> dict[str, Any]:
    """The ids of special tokens, and those that begin and end a text."""
    ids = {which: getattr(tokenizer, f"{which}_token_id") for which in SPECIAL}
    found: dict[str, Any] = {
        f"ggml.{theirs}_token_id": ids[ours]
        for ours, theirs in SPECIAL.items()
        if ids[ours] is not None
    }
    plain = tokenizer.backend_tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.backend_tokenizer.encode("a").ids
    at = next((n for n in range(len(whole)) if whole[n : n + len(plain)] == plain), len(whole))
    before, behind = whole[:at], whole[at + len(plain) :]
    if before not in ([], [ids["bos"]]) or behind not in ([], [ids["eos"]]):
        names = tokenizer.convert_ids_to_tokens([*before, *behind])
        raise _cannot(f"it puts {' '.join(names)} around a text")
    return found | {"ggml.add_bos_token": bool(before), "ggml.add_eos_token": bool(behind)}


def _templates(tokenizer: Any) -> dict[str, Any]:
    given = tokenizer.chat_template
    if not given:
        return {}
    if isinstance(given, str):
        return {"chat_template": given}
    others = {f"chat_template.{name}": text for name, text in given.items() if name != "default"}
    made = {"chat_template": given["default"]} if "default" in given else {}
    return made | others | {"chat_templates": sorted(name for name in given if name != "default")}


def _compared(tokenizer: Any, found: Mapping[str, Any], texts: Sequence[str]) -> str | None:
    """A message about a text with special tokens for which the written metadata give other ids.
    Raises UserError if they give other ids for a text without special tokens."""
    header = Header(
        Path("the tokenizer"), {f"tokenizer.{key}": value for key, value in found.items()}, {}
    )
    try:
        core = reading.core(header, vocabulary(header))
    except Unusable as error:
        raise _cannot(error.what) from None
    named = list(tokenizer.get_added_vocab())
    reason = None
    original = tokenizer.backend_tokenizer
    for text, mine, theirs in zip(
        texts, original.encode_batch(list(texts)), core.encode_batch(list(texts)), strict=True
    ):
        if mine.ids == theirs.ids:
            continue
        at = next(
            (n for n, (a, b) in enumerate(zip(mine.ids, theirs.ids, strict=False)) if a != b), 0
        )
        what = (
            f"from {text[:40]!r} it makes … {mine.ids[at : at + 6]}, but llama.cpp would make "
            f"… {theirs.ids[at : at + 6]}"
        )
        if not any(name in text for name in named):
            raise _cannot(what)
        reason = reason or what
    return reason


def _cannot(why: str) -> UserError:
    return UserError(f"export.format=gguf: llama.cpp cannot run this tokenizer: {why}; {REMEDY}")
