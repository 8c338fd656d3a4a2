"""A model that says one text, whose tokenizer is made as SentencePiece's are."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SAID = ["▁", "▁the", "▁end", "▁of", "▁it", "<0xF0>", "<0x9F>", "<0x98>", "<0x8A>"]
TEXT = " the end of it😊"
"""What it says after ``Hi``: of the first two blanks decoders strip one."""


def tokenizer() -> PreTrainedTokenizerFast:
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *SAID[:5]]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.normalizer = normalizers.Replace(" ", "▁")
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def save_saying(folder: Path) -> Path:
    """Write the model into ``folder``; returns it. Each token has its successor."""
    own = tokenizer()
    own.save_pretrained(folder)
    size = 320
    shape = LlamaConfig(
        vocab_size=len(own), hidden_size=size, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=1, head_dim=8, max_position_embeddings=256,
        tie_word_embeddings=False, bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id,
    )  # fmt: skip
    model = LlamaForCausalLM(shape)
    ids = own.convert_tokens_to_ids(["<0x69>", *SAID, "</s>"])
    with torch.no_grad():
        for weights in model.model.layers.parameters():
            weights.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(len(own), size))
        model.lm_head.weight.zero_()
        model.lm_head.weight[ids[1:], ids[:-1]] = 1
    model.save_pretrained(folder)
    return folder
