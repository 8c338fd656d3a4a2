"""The model that ``serve.py`` asks, and what it must answer."""

from __future__ import annotations

from pathlib import Path

CONTEXT = 256
ROUNDING = 0.02
"""Standard deviations of the scores by which a token may be behind the likeliest one."""


def prompts(count: int) -> list[str]:
    """Texts of 40 bytes, no two alike."""
    return [f"{n:05d} {n * 7919 % 100_003:05d} of the load test, go on".ljust(40)[:40]
            for n in range(count)]  # fmt: skip


def save_model(folder: Path, hidden: int, layers: int) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {piece: n for n, piece in enumerate(alphabet, 1)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>").save_pretrained(folder)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, intermediate_size=3 * hidden,
        num_hidden_layers=layers, num_attention_heads=hidden // 32, num_key_value_heads=4,
        max_position_embeddings=CONTEXT, initializer_range=0.1, bos_token_id=None,
        eos_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    printable = {piece for piece in alphabet if " " < piece < "\x7f"}
    with torch.no_grad():  # answers are ASCII, a character a token, and never end by themselves
        for piece, row in vocabulary.items():
            if piece not in printable:
                model.lm_head.weight[row] = 0
    model.save_pretrained(folder)


def expected(folder: Path, texts: list[str], tokens: int) -> list[str]:
    """What transformers' own ``generate`` makes of each prompt, greedily."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = GenerationConfig(max_new_tokens=tokens, do_sample=False, pad_token_id=0,
                                eos_token_id=None)  # fmt: skip
    made: list[str] = []
    for start in range(0, len(texts), 100):
        ids = torch.tensor([tokenizer(text)["input_ids"] for text in texts[start : start + 100]])
        rows = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
        made += [tokenizer.decode(row) for row in rows[:, ids.shape[1] :].tolist()]
    return made


def rounding_apart(folder: Path, answers: list[tuple[str, str]]) -> list[bool]:
    """For prompts and answers that differ from ``expected``: whether the answer's tokens were
    the likeliest all the same, as near as kernels of another engine reckon."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    fine = []
    for prompt, text in answers:
        start = len(tokenizer(prompt)["input_ids"])
        ids = torch.tensor([tokenizer(prompt + text)["input_ids"]])
        with torch.inference_mode():
            scores = model(ids).logits[0, start - 1 : -1]
        behind = scores.max(-1).values - scores.gather(-1, ids[0, start:, None])[:, 0]
        fine.append(bool((behind <= ROUNDING * scores.std(-1)).all()))
    return fine
