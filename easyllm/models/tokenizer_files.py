"""Tokenizers in Hugging Face's format, in words that transformers 4 and 5 both know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easyllm.files import read_json, write_json

LOADING = ("is_local", "local_files_only", "backend")
"""Keys of ``tokenizer_config.json`` that say where and how the machine that saved it had
loaded it: transformers 5.19 writes them."""


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Write a ``tokenizers.Tokenizer`` in a form that transformers 4 and 5 load as it is."""
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=1 << 30,
        **settings,
    ).save_pretrained(folder)
    config = read_json(folder / "tokenizer_config.json")
    if "extra_special_tokens" in config:
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in LOADING:
        config.pop(key, None)
    write_json(folder / "tokenizer_config.json", config)
