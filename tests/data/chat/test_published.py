"""Published templates: documents of a conversation, and each answer in the context of serving."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from easyllm.data.chat.templates import TokenizerTemplate
from easyllm.errors import BadRecord
from easyllm.spec.roles import ChatDocument
from tests.data.chat import published
from tests.data.chat.published import chat, tokenizer_for, tool_chat


class Expected(NamedTuple):
    """Documents of three plain answers, three with reasoning, two questions with a tool call;
    or the word by which a record is rejected."""

    package: str
    name: str
    plain: int | str
    reasoning: int | str
    tools: int | str
    key: str = "reasoning_content"
    """Under which the template reads reasoning; ``parts`` where as a part of the content."""


DROPS, OPENS = "drops the reasoning", "opens the reasoning"
NO_CALLS = r"drops (the tools|a call's name)"

TABLE = (
    # history is only added to
    Expected("trl", "llama3_1", 1, DROPS, 1),
    Expected("axolotl", "llama4", 1, DROPS, 1),
    Expected("trl", "qwen2_5", 1, DROPS, 1),
    Expected("trl", "qwen3_instruct_2507", 1, DROPS, 1),
    Expected("trl", "qwen3_8", 1, 1, 1),
    Expected("trl", "gemma3", 1, DROPS, NO_CALLS),
    Expected("trl", "phi3", 1, DROPS, NO_CALLS),
    Expected("trl", "gemma4", 1, DROPS, 1),
    Expected("trl", "cohere", 1, DROPS, NO_CALLS),
    Expected("trl", "muse_glimmer", 1, 1, 1),
    Expected("axolotl", "phi_4", 1, DROPS, NO_CALLS),
    Expected("axolotl", "jamba", 1, DROPS, 1),
    Expected("axolotl", "command_a_tool_use", 1, DROPS, 1),
    Expected("axolotl", "exaone4", 1, 3, 1),  # 3: thinking is asked for, and history drops it
    # nothing ends the last answer
    Expected("trl", "glm4moe", 1, 3, 1),
    # history loses thinking
    Expected("trl", "qwen3", 3, 3, 3),
    Expected("trl", "qwen3_5_think", 3, 3, 2),
    Expected("trl", "qwen3_5_nothink", 3, 3, 2),
    Expected("trl", "qwen3_6", 3, 3, 2),
    Expected("trl", "gemma4_v5", 1, 3, 1),
    Expected("trl", "lfm2_2_5_v2", 1, 3, 1),
    Expected("axolotl", "qwen3_5", 3, 3, 3),
    # the last answer ends or is written otherwise
    Expected("trl", "gptoss", 3, 3, 2, "thinking"),
    Expected("trl", "phi3_5", 1, DROPS, NO_CALLS),
    # the prompt writes what history lacks
    Expected("axolotl", "gemma4", 3, DROPS, 2),
    Expected("trl", "deepseek_r1_distill", OPENS, 3, OPENS),
    Expected("trl", "deepseekv3", OPENS, 3, OPENS),
    Expected("trl", "nemotron_3_nano", 1, 3, 1),  # 1: with the template's own switch
    # earlier text moves
    Expected("axolotl", "mistral_v3_tekken", 1, DROPS, 2),
    Expected("axolotl", "mistral_v2v3", 1, DROPS, 2),
)


def answers(documents: Sequence[ChatDocument]) -> list[tuple[list[int], list[int], str]]:
    """Of each trained answer, in order: the ids before it, its own, the arguments."""
    found = []
    for document in documents:
        edges = [
            place
            for place in range(len(document.ids) + 1)
            if (place > 0 and document.trained[place - 1])
            != (place < len(document.ids) and document.trained[place])
        ]
        spans = list(zip(edges[::2], edges[1::2], strict=True))
        assert len(spans) == len(document.arguments)
        for (start, end), arguments in zip(spans, document.arguments, strict=True):
            found.append((document.ids[:start], document.ids[start:end], arguments))
    return found


def check(tokenizer: Any, messages: list[dict[str, Any]], expected: Any, key: str) -> None:
    """Documents or rejection as expected; each answer behind the ids that plain transformers
    gives the conversation before it, to a token with which generation ends."""
    template = TokenizerTemplate()
    if isinstance(expected, str):
        with pytest.raises(BadRecord, match=expected):
            template.encode(tokenizer, messages)
        return
    documents = template.encode(tokenizer, messages)
    assert len(documents) == expected
    found = answers(documents)
    places = [place for place, m in enumerate(messages) if m["role"] == "assistant"]
    assert len(found) == len(places), "each answer is trained once"
    read = [_renamed(message, key) for message in messages]
    ends = template.stop_tokens(tokenizer)
    for (context, answer, arguments), place in zip(found, places, strict=True):
        served = tokenizer.apply_chat_template(
            read[:place],
            tools=messages[0].get("tools"),
            add_generation_prompt=True,
            tokenize=True,
            **json.loads(arguments),
        )["input_ids"]
        assert context == served
        if arguments == "{}":
            assert context == template.prompt(tokenizer, messages[:place])
        said = tokenizer.decode(answer)
        message = messages[place]
        assert message["content"] in said and message.get("reasoning_content", "") in said
        for call in message.get("tool_calls", []):
            assert call["function"]["name"] in said and "Berlin north" in said
        assert answer[-1] in ends
        assert not set(answer[:-1]) & {tokenizer.eos_token_id}


def _renamed(message: dict[str, Any], key: str) -> dict[str, Any]:
    made = {name: value for name, value in message.items() if name != "tools"}
    if "reasoning_content" in made:
        reasoning = made.pop("reasoning_content")
        if key == "parts":
            thought = {"type": "thinking", "thinking": reasoning}
            made["content"] = [thought, {"type": "text", "text": made["content"]}]
        else:
            made[key] = reasoning
    return made


@pytest.mark.parametrize("expected", TABLE, ids=lambda e: f"{e.package}-{e.name}")
def test_answers_are_trained_as_they_are_asked_for(expected: Expected) -> None:
    tokenizer = tokenizer_for(published.template(expected.package, expected.name))
    _check_all(tokenizer, expected)


def _check_all(tokenizer: Any, expected: Expected) -> None:
    for turns in (1, 2, 3):
        plain, reasoning = (
            turns if count == 3 else count for count in (expected.plain, expected.reasoning)
        )
        check(tokenizer, chat(turns), plain, expected.key)
        check(tokenizer, chat(turns, reasoning=True), reasoning, expected.key)
    check(tokenizer, tool_chat(), expected.tools, expected.key)


@pytest.mark.parametrize("name", ["llama3_1", "qwen3_8"])
def test_a_context_that_merges_with_its_answer_begins_a_document(name: str) -> None:
    """GPT-2's splitting takes the last line break of a prompt apart once words follow it: in the
    history of the next question it is not the token that the server asked with."""
    tokenizer = tokenizer_for(published.template("trl", name), like_gpt2=True)
    check(tokenizer, chat(3), 3, "reasoning_content")


def test_an_empty_reasoning_is_closed_where_that_is_asked_for() -> None:
    tokenizer = tokenizer_for(published.template("trl", "deepseek_r1_distill"))
    documents = TokenizerTemplate(close_empty_reasoning=True).encode(tokenizer, chat(2))
    said = [tokenizer.decode(answer) for _, answer, _ in answers(documents)]
    end = tokenizer.eos_token
    assert said == [f"\n</think>\n\nAnswer number {number} is here.{end}" for number in (0, 1)]
    for number, (context, _, _) in enumerate(answers(documents)):
        assert tokenizer.decode(context).endswith("<think>\n"), number


L = "llama-cpp-python"
DEEPSEEK_R1 = "deepseek-ai-DeepSeek-R1-Distill"
LLAMA_CPP = (
    Expected(L, "meta-llama-Llama-3.1-8B-Instruct", 1, DROPS, 1),
    Expected(L, "meta-llama-Llama-3.3-70B-Instruct", 1, DROPS, 1),
    Expected(L, "meta-llama-Llama-3.2-3B-Instruct", 1, DROPS, 1),
    Expected(L, "Qwen-Qwen2.5-7B-Instruct", 1, DROPS, 1),
    Expected(L, "Qwen3-Coder", 1, DROPS, 1),
    Expected(L, "Qwen-Qwen3-0.6B", 3, 3, 3),
    Expected(L, "Qwen3.5-4B", 3, 3, 2),
    Expected(L, "Qwen-QwQ-32B", 3, 3, 3),
    Expected(L, "openai-gpt-oss-120b", 3, 3, 2, "thinking"),
    Expected(L, "mistralai-Mistral-Nemo-Instruct-2407", 1, DROPS, 2),
    Expected(L, "mistralai-Ministral-3-14B-Reasoning-2512", 1, 1, 1, "parts"),
    Expected(L, "Mistral-Small-3.2-24B-Instruct-2506", 1, DROPS, 2),
    Expected(L, "google-gemma-2-2b-it", 1, DROPS, NO_CALLS),
    Expected(L, "google-gemma-4-31B-it", 3, DROPS, 2),
    Expected(L, "GLM-4.6", 1, 3, 1),
    Expected(L, "deepseek-ai-DeepSeek-V3.1", 1, 3, 1),
    Expected(L, f"{DEEPSEEK_R1}-Llama-8B", OPENS, 3, OPENS),
    Expected(L, f"{DEEPSEEK_R1}-Qwen-32B", 3, 3, 2),
    Expected(L, "Kimi-K2-Instruct", 1, DROPS, "is unsafe"),
    Expected(L, "Kimi-K3", 1, 1, 1),
    Expected(L, "MiniMax-M2", OPENS, 3, OPENS),
    Expected(L, "NVIDIA-Nemotron-Nano-v2", OPENS, 3, OPENS),
    Expected(L, "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", 1, 3, 1),
    Expected(L, "microsoft-Phi-3.5-mini-instruct", 1, DROPS, NO_CALLS),
    Expected(L, "ibm-granite-granite-3.3-2B-Instruct", 1, DROPS, NO_CALLS),
    Expected(L, "ibm-granite-granite-4.0", 1, DROPS, 1),
    Expected(L, "HuggingFaceTB-SmolLM3-3B", 1, DROPS, NO_CALLS),
    Expected(L, "LFM2.5-Instruct", 1, DROPS, NO_CALLS),
    Expected(L, "CohereForAI-c4ai-command-r7b-12-2024-tool_use", 3, DROPS, 2),
    Expected(L, "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "not iterable", "not iterable", 2),
    Expected(L, "Apertus-8B-Instruct", 1, DROPS, 2),
    Expected(L, "ByteDance-Seed-OSS", 1, 1, 1),
    Expected(L, "StepFun3.5-Flash", 3, 3, 3),  # its prompt's line break merges with its answer's
    Expected(L, "upstage-Solar-Open-100B", 1, 3, 1, "reasoning"),
)


@pytest.mark.slow
@pytest.mark.parametrize("expected", LLAMA_CPP, ids=lambda e: e.name)
def test_so_are_those_of_llama_cpps_collection(expected: Expected) -> None:
    folder = published.llama_cpp()
    if folder is None:
        pytest.skip(f"needs a package registry that has {published.LLAMA_CPP}")
    (file,) = folder.glob(f"*{expected.name}.jinja")
    tokenizer = tokenizer_for(file.read_text("utf-8"))
    _check_all(tokenizer, expected)
