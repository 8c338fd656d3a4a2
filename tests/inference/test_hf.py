"""The transformers engine against ``generate`` and against itself."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from easyllm.errors import UserError
from easyllm.inference.engines import Transformers
from easyllm.inference.hf import HFGenerator
from easyllm.spec.run import SamplingSpec
from tests.inference.small import save_model
from tests.support import run_spec

PROMPTS = ["abc", "The quick brown fox jumps", "z", "hello there", "0123456789" * 3]
GREEDY = SamplingSpec(max_tokens=20)
WARM = SamplingSpec(max_tokens=20, temperature=1.0, top_p=0.9, top_k=50, seed=5)
FIRM = SamplingSpec(max_tokens=20, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def load(folder: Path, batch_size: int = 2, **config: object) -> HFGenerator:
    plain = {"model": {"dtype": "float32"}, "inference": {"batch_size": batch_size}, **config}
    return Transformers().load(folder, run_spec(folder, plain))


def encode(generator: HFGenerator) -> list[list[int]]:
    return [generator.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", [GREEDY, FIRM])
def test_greedy_is_transformers_own(folder: Path, sampling: SamplingSpec) -> None:
    generator = load(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    made = generator.generate(encode(generator), sampling)
    for prompt, completion in zip(encode(generator), made, strict=True):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            generation_config=GenerationConfig(
                max_new_tokens=20,
                do_sample=False,
                repetition_penalty=sampling.repetition_penalty,
                eos_token_id=0,
                pad_token_id=0,
            ),
        )[0, len(prompt) :].tolist()
        assert completion.tokens == [token for token in expected if token != 0]
        assert completion.finish_reason == ("stop" if 0 in expected else "length")
    assert len({tuple(completion.tokens) for completion in made}) == len(PROMPTS)


@pytest.mark.parametrize("sampling", [GREEDY, WARM, FIRM])
def test_a_batch_changes_nothing(folder: Path, sampling: SamplingSpec) -> None:
    one, all_ = load(folder, batch_size=1), load(folder, batch_size=8)
    assert one.generate(encode(one), sampling) == all_.generate(encode(all_), sampling)


def test_a_batch_changes_nothing_where_positions_are_learned(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(7)
    shape = GPT2Config(
        vocab_size=257, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    one, all_ = load(tmp_path, batch_size=1), load(tmp_path, batch_size=8)
    prompts = [*encode(one), [5] * 120]  # the last one comes to the last position first
    assert one.generate(prompts, GREEDY) == all_.generate(prompts, GREEDY)
    assert all_.max_positions == 128


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_a_stream_grows_to_what_generate_gives(folder: Path, sampling: SamplingSpec) -> None:
    generator = load(folder)
    prompt = encode(generator)[1]
    steps = list(generator.stream(prompt, sampling))
    assert [len(step.tokens) for step in steps] == list(range(1, 21))
    assert all(step.finish_reason is None for step in steps[:-1])
    assert [steps[-1]] == generator.generate([prompt], sampling)


def test_seeds(folder: Path) -> None:
    generator = load(folder)
    prompt = encode(generator)[0]

    def drawn(seed: int | None, of: HFGenerator = generator) -> list[list[int]]:
        sampling = dataclasses.replace(WARM, seed=seed)
        return [completion.tokens for completion in of.generate([prompt, prompt], sampling)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) == drawn(42) == drawn(None, load(folder, seed=42))
    assert drawn(None, load(folder, seed=43)) == drawn(43)
    first, second = drawn(1)
    assert first != second  # the same prompt twice gives two samples


def test_stops_at_each_end_of_sequence_token(tmp_path: Path, folder: Path) -> None:
    generator = load(folder)
    prompt = encode(generator)[1]
    (whole,) = generator.generate([prompt], GREEDY)
    last = next(i for i in range(3, 20) if whole.tokens[i] not in whole.tokens[:i])
    stopped = save_model(tmp_path)
    GenerationConfig(eos_token_id=[256, whole.tokens[last]]).save_pretrained(stopped)
    generator = load(stopped)
    assert generator.stops == {0, 256, whole.tokens[last]}
    (completion,) = generator.generate([prompt], GREEDY)
    assert (completion.tokens, completion.finish_reason) == (whole.tokens[:last], "stop")
    *_, final = generator.stream(prompt, GREEDY)
    assert final == completion


def test_what_was_made_is_told(folder: Path) -> None:
    generator = load(folder, batch_size=2)
    told: list[int] = []
    made = generator.generate(encode(generator), GREEDY, told.append)
    assert sum(told) == sum(len(completion.tokens) for completion in made)
    assert len(told) >= 3


def test_the_models_positions_are_the_limit(folder: Path) -> None:
    generator = load(folder)
    assert generator.max_positions == 128
    (completion,) = generator.generate([[5] * 120], GREEDY)
    assert (len(completion.tokens), completion.finish_reason) == (8, "length")
    with pytest.raises(UserError, match="128 tokens, and the model has 128"):
        generator.generate([[5], [5] * 128], GREEDY)
    with pytest.raises(UserError, match="is empty"):
        generator.stream([], GREEDY)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_held_in_the_runs_dtype(folder: Path, dtype: str) -> None:
    generator = load(folder, model={"dtype": dtype})
    assert generator.model.dtype is getattr(torch, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_named(folder: Path) -> None:
    with pytest.raises(UserError, match=r"hardware\.device=cuda"):
        load(folder, hardware={"device": "cuda"})


def test_a_folder_without_its_tokenizer_is_named(folder: Path, tmp_path: Path) -> None:
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(folder / file, tmp_path / file)
    with pytest.raises(UserError, match=f"{tmp_path}: transformers cannot load"):
        load(tmp_path)
