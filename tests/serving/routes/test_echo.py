"""Log-probabilities of prompts, and the tokens of texts and conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.inference.small import save_model
from tests.serving.served import Served, spec

PROMPT = "If the list is empty, 😊 it"


def expected(folder: Path, ids: list[int]) -> list[float]:
    """By transformers itself."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)]


def complete(served: Served, **body: Any) -> Any:
    response = served.client.post("/v1/completions", json={"echo": True, **body})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("given", ["text", "tokens"])
@pytest.mark.parametrize("max_tokens", [0, 3])
def test_a_repeated_prompt(served: Served, model: Path, given: str, max_tokens: int) -> None:
    ids: list[int] = AutoTokenizer.from_pretrained(model)(PROMPT)["input_ids"]
    prompt = PROMPT if given == "text" else ids
    found = complete(served, prompt=prompt, logprobs=2, max_tokens=max_tokens)
    (choice,) = found["choices"]
    assert choice["text"].startswith(PROMPT)
    assert (choice["text"] == PROMPT) is (max_tokens == 0)
    given_back = choice["logprobs"]
    assert "".join(given_back["tokens"]) == choice["text"]
    assert given_back["token_logprobs"][0] is None and given_back["top_logprobs"][0] is None
    values = given_back["token_logprobs"][1 : len(ids)]
    assert values == pytest.approx(expected(model, ids), abs=1e-4)
    assert all(len(top) in (2, 3) for top in given_back["top_logprobs"][1:])
    assert found["usage"]["prompt_tokens"] == len(ids)
    assert found["usage"]["completion_tokens"] <= max_tokens
    assert choice["finish_reason"] == "length"


def test_several_prompts_and_a_stream(served: Served, model: Path) -> None:
    prompts = [PROMPT, "if it is"]
    found = complete(served, prompt=prompts, logprobs=0, max_tokens=2)
    for prompt, choice in zip(prompts, found["choices"], strict=True):
        assert choice["text"].startswith(prompt)
        ids = AutoTokenizer.from_pretrained(model)(prompt)["input_ids"]
        values = choice["logprobs"]["token_logprobs"][1 : len(ids)]
        assert values == pytest.approx(expected(model, ids), abs=1e-4)
    body = {"prompt": PROMPT, "echo": True, "logprobs": 0, "max_tokens": 2, "stream": True}
    text, values = "", []
    with served.client.stream("POST", "/v1/completions", json=body) as response:
        for line in response.iter_lines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line[6:])["choices"]
                text += choice["text"]
                values += (choice["logprobs"] or {"token_logprobs": []})["token_logprobs"]
    assert text == found["choices"][0]["text"]
    assert values == pytest.approx(found["choices"][0]["logprobs"]["token_logprobs"], abs=1e-4)


@pytest.mark.parametrize("max_tokens", [0, 2])
def test_a_prompt_of_one_token(served: Served, max_tokens: int) -> None:
    (choice,) = complete(served, prompt=[40], logprobs=1, max_tokens=max_tokens)["choices"]
    found = choice["logprobs"]
    assert found["token_logprobs"][0] is None and found["tokens"][0] == choice["text"][0]
    assert len(found["tokens"]) == 1 + max_tokens
    assert found["text_offset"][:2] == [0, 1][: 1 + max_tokens]


def test_without_log_probabilities(served: Served) -> None:
    (choice,) = complete(served, prompt=PROMPT, max_tokens=1)["choices"]
    assert choice["text"].startswith(PROMPT) and choice["logprobs"] is None


def test_no_tokens_need_an_echo(served: Served) -> None:
    status, error = served.error("/v1/completions", prompt=PROMPT, max_tokens=0)
    assert status == 400 and "max_tokens: 0 needs echo=true" in error["message"]


def test_the_token_that_ends_an_answer_is_among_its_log_probabilities(tmp_path: Path) -> None:
    """Clients such as lm-eval take those of the prompt by leaving out the last ones."""
    folder = save_model(tmp_path / "model", vocab_size=257)
    ids = AutoTokenizer.from_pretrained(folder)(PROMPT)["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        following = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
    file = folder / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": following}))
    served = Served(spec(tmp_path, folder))
    try:
        found = complete(served, prompt=PROMPT, logprobs=1, max_tokens=1)
        (choice,) = found["choices"]
        assert choice["finish_reason"] == "stop" and choice["text"] == PROMPT
        assert len(choice["logprobs"]["tokens"]) == len(ids) + 1
        assert choice["logprobs"]["tokens"][-1] == ""
        assert found["usage"]["completion_tokens"] == 0
    finally:
        served.close()


def test_tokens(served: Served, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(PROMPT)["input_ids"]
    found = served.client.post("/tokenize", json={"prompt": PROMPT}).json()
    assert found == {"count": len(ids), "max_model_len": 4096, "tokens": ids}
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    found = served.client.post("/tokenize", json={"messages": messages}).json()
    assert found["tokens"] == ids
    body = {"prompt": PROMPT, "add_special_tokens": False, "return_token_strs": True}
    found = served.client.post("/tokenize", json=body).json()
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(found["tokens"])
    status, error = served.error("/tokenize", model="other", prompt="x")
    assert status == 404 and "there is no model 'other'" in error["message"]
    status, error = served.error("/tokenize", prompt="x", messages=messages)
    assert status == 400 and "one of prompt and messages" in error["message"]
