"""The interface of every engine that generates text, and functions that all of them need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from easyllm.errors import UserError
from easyllm.spec.inference import SamplingSpec

FinishReason = Literal["stop", "length"]
"""``stop`` at a token or text that ends an answer, ``length`` at ``max_tokens`` or the
model's last position."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability under the model, before sampling changes it."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place with their log-probabilities, likeliest first."""


@dataclass
class Step:
    """The new tokens of an answer."""

    tokens: list[int]
    """New token ids; the one that ended the answer is left out."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each new token where ``sampling.logprobs`` is given."""
    finish_reason: FinishReason | None = None
    """Given in the last step, and only there."""
    end: TokenLogprob | None = None
    """Of the token that ended the answer, where ``sampling.logprobs`` is given."""


class Engine(Protocol):
    """A loaded model that generates many answers at a time, in one event loop."""

    tokenizer: Any
    """The model's Hugging Face tokenizer."""
    max_positions: int
    """Tokens of prompt and answer together at most."""

    def generate(self, prompt: Sequence[int], sampling: SamplingSpec) -> AsyncGenerator[Step, None]:
        """One answer to a prompt, as it grows; closing the generator aborts it.

        The caller handles ``sampling.n``, ``.stop`` and the spec's own seed. A greedy
        answer does not depend on what else is generated, nor does a drawn one with a seed.
        Raises UserError as ``room`` does, EngineFailed where the engine has failed.
        """

    async def score(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """The log-probability of each token after the first, given those before it, with the
        ``top`` likeliest tokens in its place. Raises as ``generate``."""

    @property
    def waiting(self) -> int:
        """Number of answers that were requested and have no token yet."""

    @property
    def unfinished(self) -> int:
        """Answers that the engine works on, those included that it is about to abort."""

    @property
    def failed(self) -> bool:
        """Whether the engine has failed and gives no more answers."""

    def close(self) -> None:
        """Abort the answers under way and release the model's memory."""


class EngineFailed(Exception):
    """An engine that cannot continue, for a reason other than the prompt."""


def room(engine: Engine, prompt: Sequence[int], sampling: SamplingSpec) -> int:
    """Tokens that may follow a prompt.

    Raises UserError for a prompt that is empty or leaves no position to write at.
    """
    if not prompt:
        raise UserError("the prompt is empty; give it at least one token")
    free = engine.max_positions - len(prompt)
    if free < 1:
        raise UserError(
            f"the prompt has {len(prompt)} tokens, and the model's context is "
            f"{engine.max_positions} tokens for the prompt and the answer; shorten it"
        )
    return min(free, sampling.max_tokens)


def ends(tokenizer: Any, generation_config: Any, sampling: SamplingSpec) -> frozenset[int]:
    """Tokens that end an answer: the generation config's, the tokenizer's, the sampling's."""
    own: list[Any] = []
    if not sampling.ignore_eos:
        configured = getattr(generation_config, "eos_token_id", None)
        own = configured if isinstance(configured, list) else [configured]
        own = [*own, tokenizer.eos_token_id]
    known = range(len(tokenizer))
    return frozenset(id_ for id_ in (*own, *sampling.stop_token_ids) if id_ in known)


def seed_of(sampling: SamplingSpec) -> int | None:
    """The sampling's seed within the 63 bits that generators of random numbers take."""
    return None if sampling.seed is None else sampling.seed % (1 << 63)
