"""How the transformers engine chooses tokens."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from easyllm.spec.inference import SamplingSpec
from tests.inference.driven import GREEDY, WARM, encode, generate, load


def test_seeds(folder: Path) -> None:
    engine = load(folder)
    prompt = encode(engine)[0]

    def drawn(seed: int | None) -> list[int]:
        return generate(engine, [prompt], dataclasses.replace(WARM, seed=seed))[0].tokens

    state = torch.get_rng_state()
    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(1 << 70) == drawn(1 << 70)
    assert len({tuple(drawn(None)) for _ in range(4)}) == 4
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone


@pytest.mark.parametrize(
    "narrow", [{"top_k": 1}, {"top_p": 0.0}, {"temperature": 1e-30}, {"min_p": 1.0}]
)
def test_sampling_among_one_candidate_is_greedy(folder: Path, narrow: dict[str, float]) -> None:
    engine = load(folder)
    hot = dataclasses.replace(GREEDY, **{"temperature": 9.0, **narrow})
    greedy = generate(engine, encode(engine), GREEDY)
    assert generate(engine, encode(engine), hot) == greedy
    free = generate(engine, encode(engine), dataclasses.replace(GREEDY, temperature=9.0))
    assert all(a != b for a, b in zip(free, greedy, strict=True))


@pytest.mark.parametrize(
    ("setting", "count"), [({"top_k": 3}, 3), ({"top_p": 2.5 / 257}, 3), ({}, None)]
)
def test_candidates(folder: Path, setting: dict[str, Any], count: int | None) -> None:
    """At a temperature that makes all tokens alike."""
    engine = load(folder)
    hot = [SamplingSpec(max_tokens=1, temperature=1e6, seed=n, **setting) for n in range(150)]
    drawn = {made.tokens[0] for made in generate(engine, [[5]] * 150, *hot) if made.tokens}
    with torch.inference_mode():
        ranked = engine.model(torch.tensor([[5]])).logits[0, -1].argsort(descending=True)
    if count is None:
        assert len(drawn) > 75  # all of them, where transformers' default is 50
    else:
        assert drawn == set(ranked[:count].tolist())


def test_penalties_of_the_answers_own_tokens(folder: Path) -> None:
    engine = load(folder)
    prompt = encode(engine)[3]
    for strong in ({"presence_penalty": 1e4}, {"frequency_penalty": 1e4}):
        sampling = dataclasses.replace(GREEDY, max_tokens=60, **strong)
        (made,) = generate(engine, [prompt], sampling)
        assert len(set(made.tokens)) == len(made.tokens)  # no token comes twice
    (free,) = generate(engine, [prompt], dataclasses.replace(GREEDY, max_tokens=60))
    assert len(set(free.tokens)) < len(free.tokens)


def test_logprobs_are_the_models(folder: Path) -> None:
    engine = load(folder)
    prompt = encode(engine)[1]
    (made,) = generate(engine, [prompt], dataclasses.replace(WARM, logprobs=4))
    assert len(made.logprobs) == len(made.tokens)
    with torch.inference_mode():
        logits = engine.model(torch.tensor([prompt + made.tokens])).logits[0, len(prompt) - 1 :]
    wanted = logits.log_softmax(-1)
    for place, (token, told) in enumerate(zip(made.tokens, made.logprobs, strict=True)):
        assert told.token == token
        assert told.logprob == pytest.approx(float(wanted[place, token]), abs=1e-4)
        values, tokens = wanted[place].topk(4)
        assert [id_ for id_, _ in told.top] == tokens.tolist()
        assert [value for _, value in told.top] == pytest.approx(values.tolist(), abs=1e-4)
    (none,) = generate(engine, [prompt], WARM)
    assert none.logprobs == [] and none == made
