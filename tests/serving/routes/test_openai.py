"""OpenAI's own client against the server."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from tests.serving.served import Served

HI: Any = [{"role": "user", "content": "hi"}]


def chat(served: Served, **more: Any) -> Any:
    return served.openai.chat.completions.create(**{"model": "small", "messages": HI, **more})


def complete(served: Served, **more: Any) -> Any:
    return served.openai.completions.create(**{"model": "small", "prompt": "abc", **more})


def test_models(served: Served) -> None:
    (model,) = served.openai.models.list().data
    assert (model.id, model.object, model.owned_by) == ("small", "model", "easyllm")
    assert served.openai.models.retrieve("small") == model
    with pytest.raises(
        openai.NotFoundError, match="no model 'gpt-9' here; this server has 'small'"
    ):
        chat(served, model="gpt-9")


def test_chat(served: Served) -> None:
    answer = chat(served)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == served.text("hi")
    assert choice.finish_reason == "length" and choice.logprobs is None
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (20, 8, 28)


def test_chat_in_parts_and_from_developers(served: Served) -> None:
    parts = [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]
    told = chat(served, messages=[{"role": "user", "content": parts}])
    assert told.choices[0].message.content == chat(served).choices[0].message.content
    system, developer = (
        chat(served, messages=[{"role": role, "content": "be brief"}, *HI])
        for role in ("system", "developer")
    )
    assert system.choices == developer.choices != told.choices
    with pytest.raises(openai.BadRequestError, match="only text is known"):
        chat(served, messages=[{"role": "user", "content": [{"type": "image_url"}]}])


def test_chat_streams(served: Served) -> None:
    chunks = list(chat(served, stream=True, max_tokens=40))
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.object == "chat.completion.chunk" for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(chunk.usage is None for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"
    assert not any(chunk.choices[0].finish_reason for chunk in chunks[:-1])
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == chat(served, max_tokens=40).choices[0].message.content


def test_the_last_chunk_has_the_usage_where_asked_for(served: Served) -> None:
    chunks = list(chat(served, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage == chat(served).usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_several_choices_stream_beside_each_other(served: Served) -> None:
    warm = {"n": 3, "temperature": 1.0, "seed": 8, "max_tokens": 20}
    texts = ["", "", ""]
    for chunk in chat(served, stream=True, **warm):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    whole = chat(served, **warm)
    assert texts == [choice.message.content for choice in whole.choices]
    assert len(set(texts)) == 3
    assert whole.usage.prompt_tokens == 20
    assert whole.usage.completion_tokens == 60


def test_seeds(served: Served) -> None:
    def drawn(**more: Any) -> str:
        return chat(served, temperature=1.0, max_tokens=20, **more).choices[0].message.content

    assert drawn(seed=1) == drawn(seed=1) != drawn(seed=2)
    assert drawn(seed=-1) == drawn(seed=-1)
    assert drawn() != drawn()


@pytest.mark.parametrize("stream", [False, True])
def test_stop_texts(served: Served, stream: bool) -> None:
    whole = chat(served, max_tokens=60).choices[0].message.content
    stop = whole[8:10]
    answer = chat(served, max_tokens=60, stop=["never", stop], stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        (choice,) = answer.choices
        text, reason = choice.message.content, choice.finish_reason
        assert answer.usage.completion_tokens < 60
    assert (text, reason) == (whole[: whole.index(stop)], "stop")


def test_chat_logprobs(served: Served) -> None:
    (choice,) = chat(served, logprobs=True, top_logprobs=3).choices
    entries = choice.logprobs.content
    assert len(entries) == 8
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        top = entry.top_logprobs[0]
        assert (top.token, top.logprob) == (entry.token, entry.logprob)  # greedy
        assert sum(2.72**top.logprob for top in entry.top_logprobs) <= 1.01
    (bare,) = chat(served, logprobs=True).choices
    assert [e.logprob for e in bare.logprobs.content] == pytest.approx([e.logprob for e in entries])
    streamed = [
        entry
        for chunk in chat(served, logprobs=True, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in entries]


def test_completions(served: Served) -> None:
    answer = complete(served)
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    ids = served.engine.tokenizer("abc")["input_ids"]
    assert answer.choices == complete(served, prompt=ids).choices
    (choice,) = complete(served, logprobs=2).choices
    assert choice.text == answer.choices[0].text
    assert len(choice.logprobs.tokens) == len(choice.logprobs.token_logprobs) == 8
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    assert choice.logprobs.text_offset[0] == 0
    text = "".join(chunk.choices[0].text for chunk in complete(served, stream=True))
    assert text == choice.text


def test_several_prompts_times_several_answers(served: Served) -> None:
    ids = served.engine.tokenizer("xyz")["input_ids"]
    both = complete(served, prompt=["abc", "xyz"], n=2, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    one, other = complete(served), complete(served, prompt=[ids])
    texts = [choice.text for choice in both.choices]
    assert texts == [one.choices[0].text] * 2 + [other.choices[0].text] * 2
    assert both.usage.prompt_tokens == 6


def test_what_is_not_offered_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(served, tools=[{"type": "function", "function": {"name": "add"}}])
    assert (caught.value.param, caught.value.code) == ("tools", "unsupported_parameter")
    for wrong in (
        {"prompt": [99999]},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": ["a"] * 65},
        {"prompt": [[]]},
        {"max_tokens": 5000},
        {"n": 0},
        {"logprobs": 21},
        {"best_of": 2},
        {"stop": [""]},
    ):
        with pytest.raises(openai.BadRequestError):
            complete(served, **wrong)
    assert complete(served, user="me", extra_body={"top_k": 5, "min_p": 0.1}).choices


def test_a_prompt_too_long(served: Served) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=r"4096 tokens.*4096 tokens") as caught:
            complete(served, prompt="x" * 4096, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def test_many_clients_at_once(served: Served) -> None:
    async def all_() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="-") as client:

            async def one(number: int) -> str:
                text = ""
                messages: Any = [{"role": "user", "content": f"question {number}"}]
                stream = await client.chat.completions.create(
                    model="small", messages=messages, stream=True, max_tokens=16
                )
                async for chunk in stream:
                    text += chunk.choices[0].delta.content or ""
                return text

            return await asyncio.gather(*map(one, range(40)))

    texts = asyncio.run(all_())
    alone = [served.text(f"question {number}", max_tokens=16) for number in range(40)]
    assert texts == alone


def test_finish_reasons(served: Served) -> None:
    every = {"stop_token_ids": list(range(1, 257))}
    answer = complete(served, extra_body=every)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("", "stop")
    assert answer.usage.completion_tokens == 0
    # token 0 is all that may come before the fourth
    answer = complete(served, extra_body={**every, "min_tokens": 3, "ignore_eos": True})
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "stop")


def test_a_history_with_calls_is_read_as_it_was_trained(served: Served) -> None:
    """OpenAI's clients send a call's arguments as the JSON text that they were given."""

    def tokens(arguments: Any, **more: Any) -> int:
        call = {"id": "c1", "type": "function",
                "function": {"name": "add", "arguments": arguments}}  # fmt: skip
        said: Any = {"role": "assistant", "content": None, "tool_calls": [call], **more}
        result: Any = {"role": "tool", "tool_call_id": "c1", "content": "5"}
        return int(chat(served, messages=[*HI, said, result]).usage.prompt_tokens)

    length = len('<user>hi\n<assistant><call>add{"a": 2}\n<tool>5\n<assistant>')
    assert tokens('{"a": 2}') == tokens({"a": 2}) == length
    assert tokens('{"a":2}', refusal=None, annotations=[], audio=None) == length
    with pytest.raises(openai.BadRequestError, match=r"messages\.1: 'arguments' of call 1 of"):
        tokens("a=2")
    with pytest.raises(
        openai.BadRequestError, match=r"messages\.1: it has the key 'prefix' = true"
    ):
        tokens({}, prefix=True)
