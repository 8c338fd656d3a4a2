"""Tokenizers in Hugging Face's format, as transformers 4 and 5 and vLLM load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from easyllm.models.compatible import settle_tokenizer


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Write a ``tokenizers.Tokenizer``; ``settings`` are keys of ``tokenizer_config.json``."""
    from transformers import PreTrainedTokenizerFast

    settings = {"model_max_length": 1 << 30, **settings}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings
    ).save_pretrained(folder)
    settle_tokenizer(folder)
