"""Small GGUF files, written with the gguf package."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from gguf import GGUFWriter
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

END = "<|endoftext|>"
TEXTS = sorted(topics.values())
"""Python's manual: text with code, tables and numbers."""


@cache
def byte_level() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level vocabulary that has ``END`` at first."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(TEXTS[:20], trainer)
    vocabulary = core.get_vocab()
    merges = json.loads(core.to_str())["model"]["merges"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return tokens, [" ".join(pair) for pair in merges]


def write(file: Path, **tokenizer: Any) -> Path:
    """A file without tensors whose tokenizer is a byte-level one; ``tokenizer`` is laid over
    its keys, None taking one away."""
    tokens, merges = byte_level()
    keys: dict[str, Any] = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [3] + [1] * (len(tokens) - 1),
        "merges": merges,
        "eos_token_id": 0,
        **tokenizer,
    }
    writer = GGUFWriter(file, "llama")
    add(writer, {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return file


def add(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, Sequence):
            writer.add_array(key, value)
