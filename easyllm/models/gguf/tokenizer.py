"""The tokenizer that a GGUF file describes, in Hugging Face's format.

transformers 5.19 reads 23 names of ``tokenizer.ggml.pre`` and for every other one splits text as
GPT-2 does, without a warning: SmolLM2's file says ``smollm``, and from ``y =   10`` it makes other
ids than the published tokenizer. It ignores ``add_bos_token`` and ``add_space_prefix``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easyllm.models import tokenizer_files
from easyllm.models.gguf import pieces
from easyllm.models.gguf.header import Header
from easyllm.models.gguf.splitting import DIGIT, GPT2, Rule
from easyllm.models.gguf.vocabulary import (
    CONTROL,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    merges_within,
    vocabulary,
)


def convert(header: Header, folder: Path) -> None:
    """Write the file's tokenizer into ``folder``. Raises Unusable as ``vocabulary`` does."""
    found = vocabulary(header)
    settings: dict[str, Any] = {
        f"{which}_token": found.tokens[number] for which, number in found.special.items()
    }
    if found.templates:
        alone = list(found.templates) == ["default"]
        settings["chat_template"] = found.templates["default"] if alone else dict(found.templates)
    tokenizer_files.save(core(header, found), folder, **settings)


def core(header: Header, found: Vocabulary) -> Any:
    """The ``tokenizers.Tokenizer`` of a file. Raises Unusable where it cannot be exact."""
    bytes_ = found.kind == "gpt2" and not found.rule.characters
    made = _byte_level(found) if bytes_ else pieces.tokenizer(found)
    _add_tokens(made, found, header)
    _begin_and_end(made, found)
    return made


def _byte_level(found: Vocabulary) -> Any:
    from tokenizers import Tokenizer, decoders, models

    assert found.merges is not None, "checked with the vocabulary"
    made = Tokenizer(
        models.BPE(
            {token: number for number, token in enumerate(found.tokens)},
            merges_within(found.merges, set(found.tokens)),
            ignore_merges=found.rule.whole,
        )
    )
    cut(made, found.rule)
    made.decoder = decoders.ByteLevel()
    return made


def cut(made: Any, rule: Rule) -> None:
    """Give a byte-level ``tokenizers.Tokenizer`` a rule's normaliser and pre-tokenizer."""
    from tokenizers import Regex, normalizers, pre_tokenizers

    words = rule.splits[-1] == GPT2  # every engine knows it by this name
    steps: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if split == DIGIT
        else pre_tokenizers.Split(Regex(split), "isolated")
        for split in (rule.splits[:-1] if words else rule.splits)
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words))
    if rule.nfc:
        made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]


def _add_tokens(core: Any, found: Vocabulary, header: Header) -> None:
    """Add the tokens that are found in a text as they are: control tokens, and user-defined
    tokens."""
    from tokenizers import AddedToken

    special = {*found.special.values(), *found.ids(CONTROL, UNKNOWN)}
    named = {key for key in ("eot", "eom") if f"tokenizer.ggml.{key}_token_id" in header.metadata}
    special |= {header.of_tokenizer(f"{key}_token_id") for key in named}
    # llama.cpp: Phi-3's special tokens absorb the whitespace after them, which no key says
    name = str(header.metadata.get("general.name", "")).lower()
    greedy = "phi-3" in name or "phi3" in name
    for number in sorted({*special, *found.ids(USER_DEFINED)}):
        text = found.tokens[number]
        added = AddedToken(
            text,
            special=number in special,
            normalized=False,
            lstrip=text in found.rule.lstrip,
            rstrip=greedy and text not in ("<unk>", "<s>", "<|endoftext|>"),
        )
        (core.add_special_tokens if number in special else core.add_tokens)([added])
        assert core.token_to_id(text) == number, "every token is in the vocabulary"


def _begin_and_end(core: Any, found: Vocabulary) -> None:
    from tokenizers import processors

    first = [found.special["bos"]] if found.bos else []
    last = [found.special["eos"]] if found.eos else []
    steps: list[Any] = []
    if found.kind == "gpt2" and not found.rule.characters:  # it marks where words begin
        steps.append(processors.ByteLevel(trim_offsets=False))
    if first or last:
        names = {found.tokens[number]: number for number in (*first, *last)}
        before = [f"{found.tokens[number]}:0" for number in first]
        behind = [f"{found.tokens[number]}:0" for number in last]
        second = [f"{part.removesuffix(':0')}:1" for part in (*before, "$B:0", *behind)]
        single = [*before, "$A:0", *behind]
        steps.append(
            processors.TemplateProcessing(
                single=single, pair=[*single, *second], special_tokens=list(names.items())
            )
        )
    if steps:
        core.post_processor = processors.Sequence(steps) if len(steps) > 1 else steps[0]
