"""How the rule of each `tokenizer.ggml.pre` cuts a text into words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, models

from easyllm.models.gguf import splitting, tokenizer

TEXT = "We'LL pay  1234567 €\n\n  f(x)!=`HelloWorld` 你好，ok"
CUT = {
    "default": "We¦'¦LL¦ pay¦ ¦ ¦123¦456¦7¦ €¦\n\n ¦ f¦(¦x¦)!=¦`¦HelloWorld¦`¦ 你好¦，¦ok",
    "llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano dbrx "
    "smaug-bpe chatglm-bpe glm4 glm5 jais-2":
        "We¦'LL¦ pay¦ ¦ ¦123¦456¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ 你好¦，ok",
    "minicpm5": "We¦'LL¦ pay¦  ¦123¦456¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ 你好¦，ok",
    "qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2 qwen35 "
    "ufakzeka bailingmoe bailingmoe2 llada-moe":
        "We¦'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ 你好¦，ok",
    "laguna seed-coder":
        "We¦'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €¦\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ 你好¦，ok",
    "exaone-moe":
        "We¦'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €\n¦\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ 你好¦，ok",
    "gpt-4o llama4 kanana2 talkie minimax-m2 granite-embed-multi-97m":
        "We'LL¦ pay¦ ¦ ¦123¦456¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦Hello¦World¦`¦ 你好¦，ok",
    "tiny_aya cohere2moe":
        "We'LL¦ pay¦  ¦1¦234¦567¦ €\n\n¦ ¦ f¦(x¦)!=`¦Hello¦World¦`¦ 你好¦，ok",
    "tekken":
        "We¦'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦Hello¦World¦`¦ 你好¦，ok",
    "kimi-k2":
        "We'LL¦ pay¦ ¦ ¦123¦456¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦Hello¦World¦`¦ ¦你好¦，ok",
    "youtu":
        "We'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦Hello¦World¦`¦ ¦你好¦，¦ok",
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4":
        "We¦'LL¦ pay¦  ¦123¦456¦7¦ €\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ ¦你好¦，¦ok",
    "spark2_5":
        "We¦'LL¦ pay¦  ¦1¦2¦3¦4¦5¦6¦7¦ €¦\n¦\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ ¦你好¦，¦ok",
    "afmoe": "We¦'LL¦ pay¦  ¦1¦234¦567¦ €\n\n¦ ¦ f¦(x¦)!=`¦HelloWorld¦`¦ ¦你好¦，¦ok",
    "superbpe": "We'LL pay  ¦1¦234¦567¦ €\n\n  f(x)!=`HelloWorld` 你好，ok",
    "deepseek-llm":
        "We¦'¦LL¦ pay¦  ¦1¦2¦3¦4¦5¦6¦7¦ ¦€¦\n¦\n¦ ¦ f¦(¦x¦)!=`¦HelloWorld¦`¦ ¦你好¦，¦ok",
    "deepseek-coder":
        "We¦'¦LL¦ pay¦  ¦1¦2¦3¦4¦5¦6¦7¦ ¦€¦\n¦\n¦ ¦ f¦(¦x¦)!¦=`¦HelloWorld¦`¦ ¦你好¦，¦ok",
    "falcon": "We¦'¦LL¦ pay¦ ¦ ¦123¦456¦7¦ €¦\n\n ¦ f¦(¦x¦)!=`¦HelloWorld¦`¦ 你好¦，¦ok",
    "starcoder refact smollm codeshell exaone minerva-7b mellum2 command-r":
        "We¦'¦LL¦ pay¦  ¦1¦2¦3¦4¦5¦6¦7¦ €¦\n\n ¦ f¦(¦x¦)!=`¦HelloWorld¦`¦ 你好¦，¦ok",
    "gpt-2 phi-2 jina-es jina-de gigachat a.x-4.0 mellum jais trillion granite-docling exaone4 "
    "jina-v1-en roberta-bpe jina-v2-es jina-v2-de jina-v2-code modern-bert mpt olmo":
        "We¦'¦LL¦ pay¦ ¦ 1234567¦ €¦\n\n ¦ f¦(¦x¦)!=`¦HelloWorld¦`¦ 你好¦，¦ok",
    "poro-chat bloom gpt3-finnish":
        "We'LL¦ pay¦ ¦ 1234567¦ €¦\n\n ¦ f¦(¦x¦)!¦=`HelloWorld`¦ 你好¦，¦ok",
    "viking":
        "We'LL¦ pay¦ ¦ ¦1¦2¦3¦4¦5¦6¦7¦ €¦\n\n ¦ f¦(¦x¦)!¦=`HelloWorld`¦ 你好¦，¦ok",
    "chameleon":
        "We¦'¦LL¦ pay¦  ¦1¦2¦3¦4¦5¦6¦7¦ €¦\n¦\n¦  ¦f¦(¦x¦)¦!¦=¦`¦HelloWorld¦`¦ 你好¦，¦ok",
}  # fmt: skip
"""How each name cuts ``TEXT``. llama.cpp (llama-cpp-python 0.3.36) was made to cut it by a
vocabulary of all its substrings and does the same, but that it does not cut HelloWorld for
tiny_aya, cohere2moe, kimi-k2 and youtu, nor digits for deepseek-llm, whose vocabulary has no
token of two, and that spaces before a number are cut for tiny_aya, cohere2moe and afmoe."""


def pieces(name: str, text: str) -> str:
    core = Tokenizer(models.BPE())
    tokenizer.cut(core, splitting.RULES[name])
    found = core.pre_tokenizer.pre_tokenize_str(text)
    return "¦".join(text[start:end] for _, (start, end) in found)


@pytest.mark.parametrize("names", CUT, ids=lambda names: names.split()[0])
def test_every_name_cuts_as_its_published_tokenizer(names: str) -> None:
    for name in names.split():
        assert pieces(name, TEXT) == CUT[names], name


def test_every_name_is_known() -> None:
    """Of llama.cpp's names all but ``whitespace``, which is a kind of its own."""
    named = {name for names in CUT for name in names.split()}
    assert named | {"gemma4", "granite-embed-multi-311m", "sarvam-moe"} == set(splitting.RULES)
    assert len(splitting.RULES) == 90


def test_capitals_and_marks_beyond_ascii() -> None:
    """The published expressions: llama.cpp's own forms of them know only a to z."""
    assert pieces("gpt-4o", "ÉcoleÉtat हिन्दी") == "École¦État¦ हिन्दी"
    assert pieces("tekken", "straßeÄB 42") == "straße¦ÄB¦ ¦4¦2"
    assert pieces("qwen35", "हिन्दी") == "हिन्दी" != pieces("qwen2", "हिन्दी")


def test_what_a_name_says_beside_the_splits() -> None:
    def named(key: str) -> set[str]:
        return {name for name, rule in splitting.RULES.items() if getattr(rule, key)}

    llama3 = set(list(CUT)[1].split()[:9])
    assert named("whole") == llama3 | {
        "minicpm5", "youtu", "glm4", "glm5", "tekken", "granite-embed-multi-97m"
    }  # fmt: skip
    assert named("bos") == llama3 | {"tekken", "chameleon", "gemma4", "granite-embed-multi-311m"}
    assert named("nfc") == {
        "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "qwen35",
        "command-r", "mpt", "olmo",
    }  # fmt: skip
