"""The examples of components in docs/ do what they say."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from easyllm.spec.inference import SamplingSpec
from tests.pages import load_module, write_files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the pages speak of, the modules of the examples among them."""
    folder = tmp_path_factory.mktemp("examples")
    write_files(folder)
    return folder


def test_examples_of_components_do_what_they_say(folder, tmp_path, monkeypatch):
    def example(name: str) -> Any:
        return load_module(folder / f"mine/{name}.py")

    schedule = example("roots").InverseSqrt(warmup=4)
    factors = [schedule.factor(step, 100) for step in range(100)]
    assert factors[:4] == [0.2, 0.4, 0.6, 0.8] and factors[4] == 1.0 and factors[16] == 0.5
    writer = example("tables").Table().open("losses", tmp_path, {})
    writer.log(1, {"loss": 2.5})
    writer.close()
    assert (tmp_path / "losses.csv").read_text() == "1,2.5\n"
    assert [example("lower").Lower(recomputed=1).recomputes(layer) for layer in (0, 1)] == [
        True,
        False,
    ]
    monkeypatch.chdir(folder)
    short = example("checked").Short(path="news.txt", characters=4)
    assert [*short.documents(short.files()[0])][:1] == ["Item"]
    with example("here").Here().open(None, tmp_path) as pool:
        assert [*pool.map(abs, [-1, 2])] == [1, 2]
    command = [sys.executable, "-c", "import os; print('at', os.nice(0))"]
    assert example("nice").Nice().launch(command, 1, tmp_path / "logs", {}) == 0
    assert f"at {min(19, os.nice(0) + 10)}" in (tmp_path / "logs/rank-0.log").read_text()
    names = ["model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.k_proj"]
    assert example("queries").Queries().chosen(names) == names[:1]

    async def answered() -> list[int]:
        echo = example("echo").Repeating(tokenizer=None)
        return [t async for step in echo.generate([1, 2], SamplingSpec()) for t in step.tokens]

    assert asyncio.run(answered()) == [1, 2]


def test_example_of_an_optimizer_keeps_the_largest_mean(folder):
    import torch

    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = load_module(folder / "mine/amsgrad.py").AMSGrad().build([{"params": [weight]}])
    weight.sum().backward()
    optimizer.step()
    assert optimizer.state[weight]["max_exp_avg_sq"].shape == weight.shape


def test_examples_of_tokenizer_encoder_and_template_work_together(folder, tmp_path):
    from transformers import AutoTokenizer

    load_module(folder / "mine/letters.py").Letters().make(None, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encode = load_module(folder / "mine/onebyone.py").OneByOne().load(tmp_path)
    ids, offsets = encode(["ab", "", "é"])
    assert offsets.tolist() == [0, 2, 2, 4] and tokenizer.decode(ids[2:]) == "é"
    assert ids.tolist()[:2] == tokenizer.encode("ab", add_special_tokens=False)
    template = load_module(folder / "mine/quoted.py").Quoted()
    question = {"role": "user", "content": "Yes?"}
    (document,) = template.encode(tokenizer, [question, {"role": "assistant", "content": "No."}])
    prompt = template.prompt(tokenizer, [question])
    assert document.ids[: len(prompt)] == prompt and not any(document.trained[: len(prompt)])
    assert tokenizer.decode(document.ids) == "> Yes?\nNo.<|end|>"
    assert all(document.trained[len(prompt) :])
