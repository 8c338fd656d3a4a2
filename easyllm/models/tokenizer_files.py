"""Tokenizers in Hugging Face's format, as transformers 4 and 5 and vLLM load them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easyllm.errors import UserError
from easyllm.models.compatible import settle_tokenizer
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def save(tokenizer: Any, folder: Path, **settings: Any) -> None:
    """Write a ``tokenizers.Tokenizer``; ``settings`` are keys of ``tokenizer_config.json``."""
    from transformers import PreTrainedTokenizerFast

    settings = {"model_max_length": 1 << 30, **settings}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **settings
    ).save_pretrained(folder)
    settle_tokenizer(folder)


def copy(store: Path, to: Path) -> None:
    """Copy the tokenizer of a token store to a model's folder, which may already hold files."""
    shutil.copytree(store, to, dirs_exist_ok=True)


def fit(run: RunSpec, config: PretrainedConfig) -> None:
    """Check that the store's tokenizer fits the model; a model with random weights gets its special
    tokens.

    Raises UserError where the tokenizer has more tokens than the model.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(RunPaths(run).store.tokenizer)
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.config.vocab_size={config.vocab_size}, but the tokenizer has "
            f"{len(tokenizer)} tokens; use the model's own tokenizer, or give "
            f"model.init=random model.overrides.vocab_size={len(tokenizer)}"
        )
    if run.model.init == "random":
        config.bos_token_id = tokenizer.bos_token_id
        config.eos_token_id = tokenizer.eos_token_id
        # a padding token's embedding is never trained, so the end of a text must not be one
        taken = (tokenizer.bos_token_id, tokenizer.eos_token_id)
        config.pad_token_id = None if tokenizer.pad_token_id in taken else tokenizer.pad_token_id
