"""Sampling against transformers' own logits processors."""

from __future__ import annotations

import pytest
import torch
from transformers.generation import logits_process as hf

from easyllm.inference.sampling import choose
from easyllm.spec.run import SamplingSpec

VOCABULARY = 40
DRAWS = 4000


def logits(rows: int = 1) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2


def shares(sampling: SamplingSpec, seen: torch.Tensor | None = None) -> torch.Tensor:
    """How often each token is chosen over evenly spaced draws."""
    rows = logits().expand(DRAWS, -1)
    marked = torch.zeros(1, VOCABULARY, dtype=torch.bool) if seen is None else seen
    draws = [(i + 0.5) / DRAWS for i in range(DRAWS)]
    chosen = choose(rows, marked.expand(DRAWS, -1), sampling, draws)
    return torch.bincount(chosen, minlength=VOCABULARY) / DRAWS


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (SamplingSpec(temperature=1.0), []),
        (SamplingSpec(temperature=0.5), [hf.TemperatureLogitsWarper(0.5)]),
        (SamplingSpec(temperature=1.0, top_k=5), [hf.TopKLogitsWarper(5)]),
        (SamplingSpec(temperature=1.0, top_p=0.8), [hf.TopPLogitsWarper(0.8)]),
        (
            SamplingSpec(temperature=1.5, top_k=9, top_p=0.6),
            [hf.TemperatureLogitsWarper(1.5), hf.TopKLogitsWarper(9), hf.TopPLogitsWarper(0.6)],
        ),
    ],
)
def test_shares_are_the_probabilities(sampling: SamplingSpec, warpers: list) -> None:
    scores = logits()
    for warper in warpers:
        scores = warper(None, scores)
    torch.testing.assert_close(shares(sampling), scores.softmax(-1)[0], atol=2 / DRAWS, rtol=0)


def test_repetition_penalty_is_transformers_own() -> None:
    seen = torch.zeros(1, VOCABULARY, dtype=torch.bool)
    words = torch.tensor([[1, 5, 7, 7]])
    seen[0, words] = True
    scores = hf.RepetitionPenaltyLogitsProcessor(1.7)(words, logits().clone())
    sampling = SamplingSpec(temperature=1.0, repetition_penalty=1.7)
    torch.testing.assert_close(
        shares(sampling, seen), scores.softmax(-1)[0], atol=2 / DRAWS, rtol=0
    )


def test_the_likeliest_token_without_temperature_or_candidates() -> None:
    scores = logits(6)
    seen = torch.zeros_like(scores, dtype=torch.bool)
    draws = [0.0, 0.2, 0.4, 0.6, 0.8, 0.999999]
    for sampling in (
        SamplingSpec(temperature=0),
        SamplingSpec(temperature=9.0, top_k=1),
        SamplingSpec(temperature=9.0, top_p=0.0),
    ):
        assert choose(scores, seen, sampling, draws).tolist() == scores.argmax(-1).tolist()


def test_the_extreme_draws_stay_among_the_candidates() -> None:
    scores = torch.zeros(1, 150_000)
    scores[0, 1000:] = -3.0
    seen = torch.zeros(1, 1, dtype=torch.bool)
    for draw in (0.0, 1 - 2**-53):
        chosen = choose(scores, seen, SamplingSpec(temperature=1.0, top_p=0.1), [draw])
        assert 0 <= int(chosen) < 1000
