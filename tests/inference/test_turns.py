"""A model that was trained on turns ends its own, whoever lets it generate."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyllm import runfile
from easyllm.data.chat.formats import Baichuan, ChatML, Llama2
from easyllm.data.chat.templates import Plain, TokenizerTemplate
from easyllm.inference.engine_protocol import Step
from easyllm.models.config import hf_config, write_description
from easyllm.spec.roles import Template
from tests.inference.small import END, save_model

WORDS = ("red", "blue", "green", "grey")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model: its tokenizer knows ChatML's tokens, its generation config does not."""
    folder = save_model(tmp_path_factory.mktemp("base"), vocab_size=259, eos_token_id=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == 0
    return folder


def easyllm(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "easyllm", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run that tokenized, trained, exported and inferred."""
    folder = tmp_path_factory.mktemp("turns")
    lines = [f"say {word}\t{word}" for word in WORDS] * 16
    (folder / "talk.tsv").write_text("\n".join(lines) + "\n")
    (folder / "spec.yaml").write_text(
        json.dumps(
            {
                "name": "turns",
                "run_dir": "run",
                "stages": ["tokenize", "train", "export", "infer"],
                "model": {"path": str(base), "dtype": "float32"},
                "data": {
                    "sources": {
                        "talk": {
                            "_target_": "easyllm.data.sources.readers.Conversations",
                            "path": "talk.tsv",
                        }
                    },
                    "template": {"_target_": "easyllm.data.chat.formats.ChatML"},
                    "seq_len": 64,
                    "packing": "best_fit",
                },
                "parallelism": {"global_batch_size": 8},
                "hardware": {"device": "cpu"},
                "training": {"steps": 60, "optimizer": {"lr": 5e-3}},
                "inference": {
                    "chat": True,
                    "prompts": {word: f"say {word}" for word in WORDS},
                    "sampling": {"max_tokens": 24},
                },
            }
        )
    )
    done = easyllm(folder, "spec.yaml")
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return folder / "run"


def test_inference_stops_at_the_end_of_turn(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "inference/results.jsonl").open()]
    assert [line["finish_reason"] for line in lines] == ["stop"] * len(WORDS)
    assert {line["text"] for line in lines} <= set(WORDS), "nothing stands after the words"


def test_so_does_plain_transformers(run: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token == END
    config = json.loads((run / "export/generation_config.json").read_text())
    assert config["eos_token_id"] == [0, end]
    model = AutoModelForCausalLM.from_pretrained(run / "export")
    asked = [{"role": "user", "content": "say red"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt")
    prompt = ids["input_ids"]
    made = model.generate(prompt, max_new_tokens=24, do_sample=False)[0, prompt.shape[1] :]
    assert made[-1] == end and int(torch.count_nonzero(made == end)) == 1


def test_so_does_the_engine_that_serves(run: Path) -> None:
    spec = runfile.load(run / "run.yaml")
    engine = spec.inference.engine.load(run / "export", spec)
    prompt = ChatML().prompt(engine.tokenizer, [{"role": "user", "content": "say red"}])

    async def steps() -> list[Step]:
        return [step async for step in engine.generate(prompt, spec.inference.sampling)]

    try:
        told = asyncio.run(steps())
    finally:
        engine.close()
    assert told[-1].finish_reason == "stop"
    assert engine.tokenizer.decode([token for step in told for token in step.tokens]) in WORDS


@pytest.mark.parametrize(("conversations", "ends"), [(False, 0), (True, [0, 258])])
def test_texts_alone_end_as_they_did(
    run: Path, tmp_path: Path, conversations: bool, ends: int | list[int]
) -> None:
    spec = runfile.load(run / "run.yaml")
    write_description(spec, hf_config(spec), tmp_path, conversations)
    config = json.loads((tmp_path / "generation_config.json").read_text())
    assert config["eos_token_id"] == ends


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (ChatML(), "<|im_end|>"),
        (Plain(), END),
        (Llama2(), END),
        (Baichuan(user_token=257, assistant_token=258), END),
    ],
    ids=lambda value: type(value).__name__,
)
def test_templates_tell_what_ends_a_turn(base: Path, template: Template, end: str) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    tokenizer.bos_token = END
    assert template.stop_tokens(tokenizer) == [tokenizer.convert_tokens_to_ids(end)]
    tokenizer.chat_template = template.chat_template(tokenizer)
    assert TokenizerTemplate().stop_tokens(tokenizer) == [tokenizer.convert_tokens_to_ids(end)]
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    assert TokenizerTemplate().stop_tokens(tokenizer) == [], "a full stop ends no turn"
