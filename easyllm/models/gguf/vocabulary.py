"""What a GGUF file says of its tokenizer, checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.errors import Unusable
from easyllm.models.gguf import CONVERSION
from easyllm.models.gguf.header import Header
from easyllm.models.gguf.splitting import RULES, Rule

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Types of tokens in ``tokenizer.ggml.token_type``."""
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "mask": "mask"}
"""Special tokens by transformers' names, and by those of GGUF."""
SPACE = "▁"
REMEDY = (
    "give data.tokenizer.path=<a folder or hub id with the model's published tokenizer>, and as "
    "model.path a folder in Hugging Face's format"
)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokenizer, checked."""

    file: Path
    kind: str
    """``tokenizer.ggml.model``: gpt2, llama, t5 or gemma4."""
    name: str
    """``tokenizer.ggml.pre``; empty for those that have no pre-tokenizer."""
    rule: Rule
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[tuple[str, str]] | None
    special: Mapping[str, int]
    """The ids of the special tokens that the file names, by transformers' names."""
    bos: bool
    """Whether texts begin with the begin-of-sequence token."""
    eos: bool
    """Whether texts end with the end-of-sequence token."""
    prefix: bool
    """Whether a space is put before a text."""
    squeezed: bool
    """Whether spaces at the ends and repeated ones are removed."""
    suffix: bool
    """Whether a token's space is after it."""
    charsmap: bytes
    """SentencePiece's compiled normalisation; empty where text is not normalised."""
    templates: Mapping[str, str]

    def ids(self, *types: int) -> list[int]:
        return [number for number, of in enumerate(self.types) if of in types]


def rule_of(header: Header) -> str:
    """A description, with its version, of the rule by which a file's text becomes tokens.

    Raises UserError where llama.cpp has no such rule.
    """
    kind, name, _ = _rule(header)
    return f"GGUF, conversion {CONVERSION}: {kind}{name and f', cut as {name}'}"


def vocabulary(header: Header) -> Vocabulary:
    """The checked description. Raises UserError, with the reason, if it cannot be made exactly."""
    kind, name, rule = _rule(header)
    tokens = header.of_tokenizer("tokens")
    if not isinstance(tokens, list) or not tokens:
        raise _unusable(header, "it holds no tokens")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, times in Counter(tokens).items() if times > 1)
        raise _unusable(header, f"it has the token {twice!r} twice")
    special = {
        ours: number
        for ours, theirs in SPECIAL.items()
        if isinstance(number := header.of_tokenizer(f"{theirs}_token_id"), int)
        and number < len(tokens)
    }
    if kind == "llama":  # the ids that llama.cpp takes if the file names none
        special = {"bos": 1, "eos": 2, "unk": 0} | special
    merges = header.of_tokenizer("merges")
    if merges is None and kind in ("gpt2", "gemma4"):
        raise _unusable(header, "it holds no merges")
    add_bos = header.of_tokenizer("add_bos_token", kind == "llama" or rule.bos)
    found = Vocabulary(
        file=header.file,
        kind=kind,
        name=name,
        rule=rule,
        tokens=tokens,
        types=_whole(header, "token_type", NORMAL, len(tokens)),
        scores=_whole(header, "scores", 0.0, len(tokens)),
        merges=None if merges is None else [_pair(header, merge) for merge in merges],
        special=special,
        # llama.cpp begins every text of this kind with it, even if the file says otherwise
        bos=bool(add_bos) or name in ("gemma4", "granite-embed-multi-311m"),
        eos=bool(header.of_tokenizer("add_eos_token", kind == "t5")),
        prefix=bool(header.of_tokenizer("add_space_prefix", kind in ("llama", "t5")))
        and kind != "gpt2",
        squeezed=bool(header.of_tokenizer("remove_extra_whitespaces", False)) and kind == "t5",
        suffix=bool(header.of_tokenizer("treat_whitespace_as_suffix", False)),
        charsmap=bytes(number & 255 for number in header.of_tokenizer("precompiled_charsmap", ())),
        templates=_templates(header),
    )
    for which, added in (("bos", found.bos), ("eos", found.eos)):
        if added and which not in special:
            raise _unusable(header, f"it adds a {which} token and does not say which one")
    return found


def _rule(header: Header) -> tuple[str, str, Rule]:
    """Kind, name and rule of a file's tokenizer. Raises UserError where there is none."""
    kind, name = header.of_tokenizer("model", ""), header.of_tokenizer("pre", "")
    if kind in ("llama", "t5"):
        return kind, "", Rule((), characters=True)
    if kind == "gemma4":
        return kind, "gemma4", RULES["gemma4"]
    if kind != "gpt2":
        what = f"tokenizer.ggml.model={kind}" if kind else "it holds no tokenizer.ggml.model"
        raise _unusable(header, f"{what}; of the kinds gpt2, llama, t5 and gemma4 it can be made")
    if not name:
        raise _unusable(
            header, "it does not say how text is cut into words: it has no tokenizer.ggml.pre"
        )
    if name not in RULES:
        raise _unusable(
            header, f"tokenizer.ggml.pre={name} is not known, so how text is cut into words is not"
        )
    return kind, name, RULES[name]


def _unusable(header: Header, what: str) -> Unusable:
    return Unusable(header.file, f"its tokenizer cannot be made: {what}", REMEDY)


def _whole(header: Header, key: str, default: Any, count: int) -> list[Any]:
    found = header.of_tokenizer(key)
    if found is None:
        return [default] * count
    if len(found) != count:
        raise _unusable(header, f"it has {count} tokens and {len(found)} of tokenizer.ggml.{key}")
    return list(found)


def _pair(header: Header, merge: str) -> tuple[str, str]:
    # a token may itself be a space, so the first character is never the separator
    at = merge.find(" ", 1)
    if at < 0:
        raise _unusable(header, f"its merge {merge!r} is not two tokens")
    return merge[:at], merge[at + 1 :]


def _templates(header: Header) -> dict[str, str]:
    begin = "tokenizer.chat_template"
    return {
        key.removeprefix(begin).removeprefix(".") or "default": value
        for key, value in header.metadata.items()
        if (key == begin or key.startswith(f"{begin}.")) and isinstance(value, str)
    }


def merges_within(merges: list[tuple[str, str]], tokens: set[str]) -> list[tuple[str, str]]:
    """The merges whose parts and result are tokens; other merges can never give an id."""
    return [
        (left, right)
        for left, right in merges
        if left in tokens and right in tokens and left + right in tokens
    ]


def spelt(texts: list[str]) -> Iterator[str]:
    """Texts for comparing two tokenizers: each token's text, and many of them in a row."""
    yield from texts
    for first in range(0, len(texts), 50):
        yield "".join(texts[first : first + 50])
