"""The original's route."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.inference.small import save_model
from tests.serving.served import LONG, Served, spec


def test_answers_with_the_servers_sampling_unless_asked(served: Served) -> None:
    text = served.text()
    assert text
    assert text == served.text() == served.text(max_tokens=8)
    assert set(served.generate().json()) == {"text"}
    longer = served.text(max_tokens=24)
    assert longer.startswith(text[:4]) and len(longer) > len(text)


def test_both_shapes_of_a_message(served: Served) -> None:
    ours = [{"system": "be brief"}, {"user": "hi"}, {"assistant": "yes"}, {"user": "go on"}]
    openai = [{"role": role, "content": text} for turn in ours for role, text in turn.items()]
    answers = {served.text(*messages) for messages in (ours, openai)}
    assert len(answers) == 1
    assert served.text(*ours[1:]) not in answers


def test_the_chat_template_is_used(served: Served, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", max_position_embeddings=4096)
    plain = Served(spec(tmp_path, base))
    try:
        assert served.text("hi") == plain.text("<user>hi\n<assistant>")
        # a base model goes on with the text
        answer = plain.text({"user": "a"}, {"assistant": "b"}, {"user": "c"})
        assert answer == plain.text("a\nb\nc")
    finally:
        plain.close()


def test_a_stream_is_nul_terminated_and_cumulative(served: Served) -> None:
    asked = {"messages": [{"user": "héllo"}], "stream": True, "sampling": {"max_tokens": 400}}
    with served.client.stream("POST", "/generate", json=asked) as response:
        assert response.status_code == 200
        chunks = list(response.iter_raw())
    body = b"".join(chunks)
    assert body.endswith(b"\0")
    texts = [json.loads(part)["text"] for part in body[:-1].split(b"\0")]
    assert all(len(text) == 1 for text in texts)
    assert len(texts) > 5 and len(chunks) > 1
    grown = [text[0] for text in texts]
    assert all(b.startswith(a) and len(a) < len(b) for a, b in pairwise(grown))
    assert grown[-1] == served.text("héllo", max_tokens=400)


def test_seeds(served: Served) -> None:
    def warm(**more: Any) -> str:
        return served.text(temperature=1.0, max_tokens=20, **more)

    assert warm(seed=1) == warm(seed=1) != warm(seed=2)
    assert warm() != warm()
    # nearly without limits, so every setting is taken
    narrow = {"top_k": 1, "top_p": 0.5, "min_p": 0.1, "repetition_penalty": 1.0}
    assert warm(**narrow) == served.text(max_tokens=20)


def test_several_answers(served: Served) -> None:
    sampling = {"temperature": 1.0, "max_tokens": 20, "seed": 4, "n": 3}
    texts = served.generate(sampling=sampling).json()["text"]
    assert len(set(texts)) == 3
    assert texts[0] == served.text(temperature=1.0, max_tokens=20, seed=4)
    assert texts == served.generate(sampling=sampling).json()["text"]


def test_a_stop_text_ends_the_answer(served: Served) -> None:
    whole = served.text(max_tokens=60)
    stop = whole[10:12]
    assert served.text(max_tokens=60, stop=stop) == whole[: whole.index(stop)]
    assert served.text(max_tokens=60, stop=["nowhere", stop]) == whole[: whole.index(stop)]


@pytest.mark.parametrize(
    ("body", "said", "param"),
    [
        ({}, "messages: Field required", "messages"),
        ({"messages": []}, "messages: ", "messages"),
        ({"messages": "hi"}, "messages: ", "messages"),
        ({"messages": [[{"user": "hi"}]]}, "messages.0: ", "messages.0"),
        (
            {"messages": [{"user": 3}]},
            "messages.0: its content is a number, 3, not a text",
            "messages.0",
        ),
        ({"messages": [{"robot": "hi"}]}, "the keys [robot]", "messages.0"),
        (
            {"messages": [{"user": "a", "assistant": "b"}]},
            "the keys [user, assistant]",
            "messages.0",
        ),
        ({"messages": [{}]}, "the keys []", "messages.0"),
        ({"sampling": {"max_tokenz": 3}}, "no such parameter", "sampling.max_tokenz"),
        ({"sampling": {"max_tokens": 0}}, "sampling.max_tokens: ", "sampling.max_tokens"),
        ({"sampling": {"max_tokens": "3"}}, "sampling.max_tokens: ", "sampling.max_tokens"),
        ({"sampling": {"max_tokens": 4097}}, "this server allows 4096", "max_tokens"),
        ({"sampling": {"min_tokens": 9}}, "is above max_tokens=8", "min_tokens"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature: ", "sampling.temperature"),
        ({"sampling": {"top_p": 2}}, "sampling.top_p: ", "sampling.top_p"),
        ({"sampling": {"n": 17}}, "n=17: this server allows 16", "n"),
        ({"stream": "yes"}, "stream: ", "stream"),
        ({"n": 2}, "no such parameter", "n"),
    ],
)
def test_mistakes_are_named(served: Served, body: dict[str, Any], said: str, param: str) -> None:
    if body and "messages" not in body:
        body = {"messages": [{"user": "hi"}], **body}
    status, error = served.error("/generate", **body)
    assert status == 400
    assert said in error["message"]
    assert (error["param"], error["type"]) == (param, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_says_both_lengths(served: Served, stream: bool) -> None:
    status, error = served.error("/generate", messages=[{"user": "x" * 5000}], stream=stream)
    assert status == 400
    assert "5018 tokens" in error["message"] and "4096 tokens" in error["message"]
    assert error["code"] == "context_length_exceeded"


def test_a_short_request_does_not_wait_for_a_long_one(served: Served) -> None:
    asked = {"messages": [{"user": "a"}], "stream": True, "sampling": {"max_tokens": LONG}}
    with served.client.stream("POST", "/generate", json=asked) as response:
        chunks = response.iter_raw()  # dropped, it would close the connection
        next(chunks)
        begun = served.service.tokens
        assert served.text()
        assert served.service.tokens - begun < LONG / 2
        assert not served.idle()


def test_answers_do_not_mix(served: Served) -> None:
    questions = [f"question {n}" for n in range(20)]  # more than are answered at a time
    warm = {"temperature": 1.0, "seed": 3, "max_tokens": 12}
    for sampling in ({}, warm):
        alone = [served.text(question, **sampling) for question in questions]
        with ThreadPoolExecutor(len(questions)) as pool:
            together = list(pool.map(lambda q, s=sampling: served.text(q, **s), questions))
        assert together == alone
        assert len(set(alone)) > 10
