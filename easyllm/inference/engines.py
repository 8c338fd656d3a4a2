"""Engines that generate text."""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

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


Steps = collections.abc.Generator[Completion, None, None]
"""A completion as it grows. Closing it ends the work."""


class Generator(Protocol):
    """A loaded model."""

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

        ``advance`` is called with the number of tokens made since the last call. A
        completion does not depend on the prompts around it. Raises UserError for a prompt
        that is empty or leaves no position to write at.
        """

    def stream(self, prompt: Sequence[int], sampling: SamplingSpec) -> Steps:
        """The growing completion of one prompt, after each token; the last one has its
        ``finish_reason``. Raises UserError at once, as ``generate`` does."""


@dataclass(frozen=True, kw_only=True)
class Transformers(InferenceEngine):
    """Transformers' own model classes, on one device."""

    def load(self, model: Path, run: RunSpec) -> Generator:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.hf import HFGenerator

        return HFGenerator(model, run)
