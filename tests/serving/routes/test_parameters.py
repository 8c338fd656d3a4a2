"""Parameters of a request: what asks for nothing is taken, the rest is refused by its name."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.serving.served import Served

HI = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}
TEXT = {"prompt": "hi", "max_tokens": 3}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {}}}
BOTH: list[tuple[str, Any]] = [
    *((name, None) for name in (
        "logit_bias", "stop", "seed", "user", "n", "stream", "stream_options", "temperature",
        "top_p", "presence_penalty", "frequency_penalty", "logprobs", "model", "metadata", "store",
        "service_tier", "no_such_parameter",
    )),
    ("logit_bias", {}), ("logprobs", False), ("n", 1), ("stop", []), ("store", False),
    ("metadata", {"a": "b"}), ("service_tier", "auto"), ("service_tier", "default"), ("user", "u"),
    ("stream", False), ("stream_options", {"include_usage": None}), ("top_k", -1),
    ("use_beam_search", False), ("length_penalty", 1.0), ("skip_special_tokens", True),
]  # fmt: skip
CHAT: list[tuple[str, Any]] = [
    *((name, None) for name in (
        "response_format", "tools", "tool_choice", "parallel_tool_calls", "functions",
        "function_call", "reasoning_effort", "modalities", "prediction", "web_search_options",
        "audio", "verbosity", "moderation", "max_completion_tokens", "top_logprobs",
        "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier",
    )),
    ("response_format", {"type": "text"}), ("tools", []), ("tool_choice", "none"),
    ("tool_choice", "auto"), ("functions", []), ("function_call", "none"),
    ("parallel_tool_calls", True), ("parallel_tool_calls", False), ("modalities", ["text"]),
    ("verbosity", "medium"), ("top_logprobs", 0), ("chat_template_kwargs", {}),
]  # fmt: skip
COMPLETION: list[tuple[str, Any]] = [
    ("echo", None), ("echo", False), ("suffix", None), ("suffix", ""), ("best_of", None),
    ("best_of", 1),
]  # fmt: skip
ASKED: list[tuple[str, Any]] = [
    ("logit_bias", {"50": -100}), ("response_format", {"type": "json_object"}), ("tools", [TOOL]),
    ("tool_choice", "required"), ("functions", [TOOL["function"]]), ("modalities", ["audio"]),
    ("prediction", {"type": "content", "content": "a"}), ("web_search_options", {}),
    ("reasoning_effort", "high"), ("store", True), ("verbosity", "low"), ("echo", True),
    ("suffix", "x"), ("best_of", 2), ("no_such_parameter", 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("/v1/chat/completions", HI, [*BOTH, *CHAT]),
        ("/v1/completions", TEXT, [*BOTH, *COMPLETION]),
    ],
)
def test_what_asks_for_nothing_changes_nothing(
    served: Served, path: str, body: dict[str, Any], fields: list[tuple[str, Any]]
) -> None:
    def answer(**more: Any) -> Any:
        response = served.client.post(path, json={**body, **more})
        assert response.status_code == 200, (more, response.text)
        (choice,) = response.json()["choices"]
        return choice

    plain = answer()
    with ThreadPoolExecutor(8) as pool:
        for field, choice in zip(
            fields, pool.map(lambda f: answer(**dict([f])), fields), strict=True
        ):
            assert choice == plain, field


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_cannot_be_done_is_named(served: Served, path: str) -> None:
    for name, value in ASKED:
        if name == "echo" and "chat" not in path:
            continue  # completions have it
        body = HI if "chat" in path else TEXT
        status, error = served.error(path, **body, **{name: value})
        assert status == 400, (name, value)
        assert (error["param"], error["code"]) == (name, "unsupported_parameter")
        assert error["type"] == "invalid_request_error"
        assert error["message"].startswith(f"{name}: ")
    status, error = served.error("/v1/chat/completions", **HI, top_logprobs=3)
    assert (status, error["param"]) == (400, "top_logprobs")
    assert "needs logprobs=true" in error["message"]


def test_null_is_no_value_for_the_originals_route(served: Served) -> None:
    body = {"messages": [{"user": "hi"}]}
    plain = served.client.post("/generate", json=body).json()
    for more in ({"stream": None}, {"sampling": None}, {"sampling": {"stop": None, "x": None}}):
        assert served.client.post("/generate", json={**body, **more}).json() == plain
    assert served.error("/generate", messages=None)[1]["param"] == "messages"


@pytest.mark.parametrize(
    ("content", "said", "param"),
    [
        (b'{"a":', "the body is not JSON: Expecting value at character 5", None),
        (b"[1]", "the body is not a JSON object", None),
        (b"", "the body is not a JSON object", None),
        (b'{"prompt": "a", "stop": 5}', "stop: ", "stop"),
        (b'{"prompt": ["a", 5.5]}', "prompt", "prompt"),
        (b'{"prompt": "a", "stop": ["b", ""]}', "stop.1: ", "stop.1"),
        (b'{"prompt": "a", "stream_options": {"a": 1}}', "stream_options.a: ", "stream_options.a"),
        (b'{"max_tokens": 1}', "prompt: Field required", "prompt"),
        (b'{"prompt": "a", "max_tokens": 0}', "max_tokens: ", "max_tokens"),
    ],
)
def test_errors_name_fields_of_the_request(
    served: Served, content: bytes, said: str, param: str | None
) -> None:
    headers = {"Content-Type": "application/json"}
    response = served.client.post("/v1/completions", content=content, headers=headers)
    error = response.json()["error"]
    assert response.status_code == 400 and error["message"].startswith(said)
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
