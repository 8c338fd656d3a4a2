"""Engines that generate text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from easyllm.errors import UserError
from easyllm.spec.roles import InferenceEngine
from easyllm.spec.run import RunSpec, SamplingSpec


@dataclass(frozen=True)
class Completion:
    """What a model wrote after a prompt."""

    tokens: list[int]
    """Token ids, the end-of-sequence token that ended them left out."""
    finish_reason: Literal["stop", "length"] | None
    """``stop`` at an end-of-sequence token, ``length`` at ``max_tokens`` or the model's
    last position; None while it still writes."""


class Generator(Protocol):
    """A loaded model. It may be used from several threads at a time."""

    tokenizer: Any
    """The Hugging Face tokenizer that stands beside the model."""
    max_positions: int
    """Tokens of prompt and completion together at most."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSpec,
        advance: Callable[[int], None] = ...,
    ) -> list[Completion]:
        """Complete every prompt, in order.

        ``advance`` is called with the number of tokens made since the last call. A greedy
        completion does not depend on the prompts around it. Sampled ones repeat themselves
        where the seed, all prompts and ``inference.batch_size`` are the same. Raises
        UserError as ``room`` does.
        """

    def stream(
        self, prompt: Sequence[int], sampling: SamplingSpec, tell: Callable[[Completion], bool]
    ) -> None:
        """Complete one prompt and ``tell`` of the completion after each token, the last time
        with its ``finish_reason``; where ``tell`` returns False, end the work.

        The completion is that of ``generate`` with this prompt alone, whatever other threads
        generate meanwhile. Raises UserError as ``room`` does.
        """


def room(generator: Generator, prompt: Sequence[int], sampling: SamplingSpec) -> int:
    """Tokens that may follow a prompt.

    Raises UserError for a prompt that is empty or leaves no position to write at.
    """
    if not prompt:
        raise UserError("a prompt is empty; give it at least one token")
    free = generator.max_positions - len(prompt)
    if free < 1:
        raise UserError(
            f"the prompt that begins {generator.tokenizer.decode(prompt[:12])!r} has "
            f"{len(prompt)} tokens, and the model has {generator.max_positions} positions for "
            "the prompt and what follows; shorten it"
        )
    return min(free, sampling.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Transformers(InferenceEngine):
    """Transformers' own model classes, on one device."""

    def load(self, model: Path, run: RunSpec) -> Generator:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.hf import HFGenerator

        return HFGenerator(model, run)
