"""Chooses each answer's next token by the answer's own settings.

Transformers' continuous batching takes one sampling configuration for all requests, draws
from one global generator and gives no alternatives. Its list of logits processors gets a
batch's scores before the likeliest token is taken; this one leaves greedy rows as they are
and in the others leaves only the token that was drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.logits_process import LogitsProcessorList

from easyllm.inference.engine_protocol import TokenLogprob, seed_of
from easyllm.spec.inference import SamplingSpec


class Choice(Protocol):
    """What the choice uses of an answer."""

    sampling: SamplingSpec
    prompt_tokens: int
    ends: frozenset[int]
    logprobs: list[TokenLogprob]
    """Filled by the choice, one for each token, where asked for."""
    draws: torch.Generator | None


class State(Protocol):
    """What transformers knows of an answer."""

    initial_tokens: list[int]
    generated_tokens: list[int]


@dataclass
class Row:
    """An answer in this step's batch."""

    choice: Choice
    state: State

    @property
    def tokens(self) -> list[int]:
        """Tokens of prompt and answer so far. Joined only when needed: few settings need them."""
        return self.state.initial_tokens + self.state.generated_tokens


class Sampler(ContinuousBatchingLogitsProcessorList):
    """Applies ``choose`` to the rows of each step's batch."""

    def __init__(self, find: Callable[[str], Choice | None]):
        super().__init__(LogitsProcessorList())
        self.do_processing = True
        self._find = find
        self._rows: list[Row | None] = []

    def prepare_tensor_args(self, requests_in_batch: Any, arg_storage: Tensor) -> Tensor:
        self._rows = []
        for request in requests_in_batch:
            if request.has_new_token:
                state = request.state
                choice = self._find(state.request_id)
                self._rows.append(None if choice is None else Row(choice, state))
        return arg_storage

    def __call__(self, input_ids: Any, scores: Any, logits_processor_args: Any) -> Any:
        choose(scores, self._rows)
        return scores


def choose(scores: Tensor, rows: list[Row | None]) -> None:
    """Change ``scores``, float32 [at least len(rows), vocabulary], so that the likeliest
    token of each row is the one its sampling chose. Rows of None are left alone."""
    wanted = [i for i, row in enumerate(rows) if row and row.choice.sampling.logprobs is not None]
    raw = torch.log_softmax(scores[wanted], -1) if wanted else scores
    drawn = []
    for i, row in enumerate(rows):
        if row is not None:
            _penalize(scores[i], row)
            if row.choice.sampling.temperature:
                drawn.append(i)
    if drawn:
        _draw(scores, drawn, [row.choice for i in drawn if (row := rows[i])])
    if wanted:
        chosen = scores[wanted].argmax(-1)
        for at, i in enumerate(wanted):
            row = rows[i]
            assert row is not None
            row.choice.logprobs.append(_logprob(raw[at], int(chosen[at]), row.choice.sampling))


def _penalize(scores: Tensor, row: Row) -> None:
    """Apply penalties and the least length in place on one row [vocabulary]."""
    sampling, choice = row.choice.sampling, row.choice
    counted_once = sampling.repetition_penalty != 1
    counted_each = bool(sampling.presence_penalty or sampling.frequency_penalty)
    if not (counted_once or counted_each or sampling.min_tokens):
        return
    tokens = row.tokens
    answer = tokens[choice.prompt_tokens :]
    if counted_once:
        seen = torch.tensor(sorted(set(tokens)), device=scores.device)
        old = scores[seen]
        scores[seen] = torch.where(
            old < 0, old * sampling.repetition_penalty, old / sampling.repetition_penalty
        )
    if answer and counted_each:
        counted = torch.tensor(answer, device=scores.device)
        own, counts = counted.unique(return_counts=True)
        scores[own] -= sampling.presence_penalty + sampling.frequency_penalty * counts
    if len(answer) < sampling.min_tokens and choice.ends:
        scores[list(choice.ends)] = -torch.inf


def _draw(scores: Tensor, indices: list[int], choices: list[Choice]) -> None:
    """Draw a token from each of these rows and leave only that token in the row."""
    samplings = [choice.sampling for choice in choices]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, device=scores.device, dtype=torch.float32)[:, None]

    some = scores[indices]
    # the largest is 0, so that no temperature, however low, makes it infinite
    some = (some - some.max(-1, keepdim=True).values) / column([s.temperature for s in samplings])
    size = some.shape[-1]
    if any(s.top_k or s.top_p < 1 or s.min_p for s in samplings):
        ordered, places = some.sort(-1, descending=True)
        probabilities = ordered.softmax(-1)
        rank = torch.arange(size, device=scores.device)
        out = rank >= column([float(min(s.top_k or size, size)) for s in samplings])
        out |= probabilities < probabilities[:, :1] * column([s.min_p for s in samplings])
        kept = probabilities.masked_fill(out, 0)
        kept /= kept.sum(-1, keepdim=True)
        # the tokens before it reach top_p already
        nucleus = column([s.top_p for s in samplings])
        out |= (kept.cumsum(-1) - kept >= nucleus) & (nucleus < 1)
        out[:, 0] = False
        some = some.scatter(-1, places, ordered.masked_fill(out, -torch.inf))
    probabilities = some.softmax(-1)
    for at, (i, choice) in enumerate(zip(indices, choices, strict=True)):
        if choice.draws is None:
            choice.draws = torch.Generator(scores.device)
            seed = seed_of(choice.sampling)
            choice.draws.seed() if seed is None else choice.draws.manual_seed(seed)
        token = torch.multinomial(probabilities[at], 1, generator=choice.draws)
        scores[i] = -torch.inf
        scores[i, token] = 0


def _logprob(row: Tensor, token: int, sampling: SamplingSpec) -> TokenLogprob:
    values, tokens = row.topk(min(sampling.logprobs or 0, len(row)))
    top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token, float(row[token]), top)
