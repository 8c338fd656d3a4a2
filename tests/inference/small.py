"""A random Llama with a byte-level tokenizer, in Hugging Face's format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import LLAMA

END = "<|endoftext|>"
CHAT = (
    "{% for tool in tools or [] %}{{ '<tool>' + tool | tojson + '\\n' }}{% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% for call in m['tool_calls'] or [] %}<call>{{ call['function']['name'] }}"
    "{{ call['function']['arguments'] | tojson }}{% endfor %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def save_model(folder: Path, chat: bool = False, **config: Any) -> Path:
    """Write the model into ``folder``; returns it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {END: 0} | {piece: n for n, piece in enumerate(alphabet, 1)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END)
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(7)
    # weights large enough that the likeliest token is not the same one everywhere
    shape = {
        **LLAMA,
        "vocab_size": len(vocabulary),
        "initializer_range": 0.3,
        "bos_token_id": None,
        "eos_token_id": None,
        **config,
    }
    model = LlamaForCausalLM(LlamaConfig(**shape))
    model.lm_head.weight.data[0] = 0  # the end is never the likeliest token
    model.save_pretrained(folder)
    return folder
