"""Tokens as clients are told them: their texts, and their bytes, are the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inference.batch.test_infer import infer
from tests.inference.saying import TEXT, save_saying
from tests.serving.served import Served, spec

TOKENS = ["", " the", " end", " of", " it", "", "", "", "😊"]
BYTES = [*(token.encode() for token in TOKENS[:5]), b"\xf0", b"\x9f", b"\x98", b"\x8a"]


@pytest.fixture(scope="module")
def saying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("saying")
    served = Served(spec(folder, save_saying(folder / "says")))
    yield served
    served.close()


def choices(served: Served, path: str, **body: Any) -> Any:
    asked = (
        {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
    )
    response = served.client.post(path, json={**asked, "max_tokens": 20, **body})
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


def test_completions(saying: Served) -> None:
    choice = choices(saying, "/v1/completions", logprobs=3)
    told = choice["logprobs"]
    assert choice["text"] == TEXT and told["tokens"] == TOKENS
    assert told["text_offset"] == [0, 0, 4, 8, 11, 14, 14, 14, 14]
    for token, top in zip(TOKENS, told["top_logprobs"], strict=True):
        assert max(top, key=lambda key: top[key]) == token and len(top) == 3


def test_chat(saying: Served) -> None:
    choice = choices(saying, "/v1/chat/completions", logprobs=True, top_logprobs=1)
    told = choice["logprobs"]["content"]
    assert choice["message"]["content"] == TEXT
    assert [entry["token"] for entry in told] == TOKENS
    assert [bytes(entry["bytes"]) for entry in told] == BYTES
    for entry in told:
        assert entry["top_logprobs"] == [{key: entry[key] for key in ("token", "logprob", "bytes")}]


@pytest.mark.parametrize(
    ("stop", "tokens"),
    [
        ([" of"], TOKENS[:3]),
        (["d o"], ["", " the", " en"]),
        (["😊"], TOKENS[:5]),
        ([" the"], []),
        (["of it!"], TOKENS),
    ],
)
def test_a_stop_text_is_not_among_the_tokens(
    saying: Served, stop: list[str], tokens: list[str]
) -> None:
    chosen = choices(saying, "/v1/completions", logprobs=1, stop=stop)
    assert chosen["logprobs"]["tokens"] == tokens
    assert chosen["text"] == "".join(tokens)
    asked: Any = {"model": "small", "prompt": "Hi", "max_tokens": 20, "logprobs": 1, "stop": stop}
    pieces = [chunk.choices[0] for chunk in saying.openai.completions.create(**asked, stream=True)]
    assert [token for piece in pieces for token in piece.logprobs.tokens] == tokens
    offsets = [offset for piece in pieces for offset in piece.logprobs.text_offset]
    assert offsets == chosen["logprobs"]["text_offset"]
    assert "".join(piece.text for piece in pieces) == chosen["text"]


def test_half_a_character_at_the_end(saying: Served) -> None:
    chosen = choices(saying, "/v1/chat/completions", logprobs=True, max_tokens=7)
    told = chosen["logprobs"]["content"]
    assert chosen["message"]["content"] == "".join(entry["token"] for entry in told)
    assert chosen["message"]["content"].startswith(" the end of it\ufffd")
    assert [bytes(entry["bytes"]) for entry in told] == BYTES[:7]


def test_bytes_that_are_no_characters(served: Served) -> None:
    """Of a model that knows bytes alone and says any."""
    for stream in (False, True):
        asked: Any = {"model": "small", "messages": [{"role": "user", "content": "hi"}],
                      "max_tokens": 60, "logprobs": True, "top_logprobs": 5}  # fmt: skip
        answer = served.openai.chat.completions.create(**asked, stream=stream)
        chosen = [part.choices[0] for part in (answer if stream else [answer])]
        text = "".join((one.delta if stream else one.message).content or "" for one in chosen)
        entries = [entry for one in chosen if one.logprobs for entry in one.logprobs.content]
        assert "".join(entry.token for entry in entries) == text
        assert all(len(entry.bytes) == 1 for entry in entries) and len(entries) == 60
        said = b"".join(bytes(entry.bytes) for entry in entries)
        assert said.decode(errors="replace") == text
        for entry in entries:
            assert len(entry.top_logprobs) == len({str(one.bytes) for one in entry.top_logprobs})


def test_batch_inference_tells_the_same(saying: Served, tmp_path: Path) -> None:
    prompts = {"prompts": {"a": "Hi"}, "sampling": {"logprobs": 1, "max_tokens": 20}}
    run = spec(tmp_path, Path(saying.run.inference.model or ""), inference=prompts)
    _, (result,) = infer(run)
    assert result["text"] == TEXT
    assert [one["token"] for one in result["logprobs"]] == TOKENS
    assert [bytes(one["bytes"]) for one in result["logprobs"]] == BYTES
    assert [one["top"][0][0] for one in result["logprobs"]] == TOKENS
