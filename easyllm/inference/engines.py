"""Engines that generate text: the protocol all of them speak, and those that are shipped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from easyllm.errors import UserError
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.problems import Problem
from easyllm.spec.roles import InferenceEngine
from easyllm.spec.run import RunSpec
from easyllm.spec.types import Count, Fraction, PositiveFloat

FinishReason = Literal["stop", "length"]
"""``stop`` at a token or text that ends an answer, ``length`` at ``max_tokens`` or the
model's last position."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token's natural log-probability under the model, before sampling shapes it."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens at its place with theirs, likeliest first."""


@dataclass
class Step:
    """What an answer has grown by."""

    tokens: list[int]
    """New token ids; the one that ended the answer is left out."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """One for each new token where ``sampling.logprobs`` is given."""
    finish_reason: FinishReason | None = None
    """Given in the last step, and only there."""


class Engine(Protocol):
    """A loaded model that generates many answers at a time, in one event loop."""

    tokenizer: Any
    """The Hugging Face tokenizer that stands beside the model."""
    max_positions: int
    """Tokens of prompt and answer together at most."""

    def generate(self, prompt: Sequence[int], sampling: SamplingSpec) -> AsyncGenerator[Step, None]:
        """One answer to a prompt, as it grows; closing the generator aborts it.

        ``sampling.n``, ``.stop`` and the spec's own seed are the caller's business. A greedy
        answer does not depend on what else is generated, nor does a drawn one with a seed.
        Raises UserError as ``room`` does, EngineFailed where the engine has broken down.
        """

    @property
    def waiting(self) -> int:
        """Answers that were asked for and have no token yet."""

    @property
    def failed(self) -> bool:
        """Whether the engine has broken down and answers no more."""

    def close(self) -> None:
        """Abort what is under way and give the model's memory back."""


class EngineFailed(Exception):
    """An engine that cannot go on, through no fault of the prompt."""


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


@dataclass(frozen=True, kw_only=True)
class Transformers(InferenceEngine):
    """Transformers' own model classes and continuous batching, on one device."""

    apart: ClassVar[bool] = True

    max_batch_tokens: Count = 512
    """Tokens, of prompts mostly, that one forward pass takes at most."""
    kv_cache_gb: PositiveFloat | None = None
    """Memory for keys and values, in 10^9 bytes; null takes what ``inference.batch_size``
    answers of full length need, 2 at most, on a CPU, and what is free on a GPU."""

    def load(self, model: Path, run: RunSpec) -> Engine:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.hf import HFEngine

        return HFEngine(model, run, self)


@dataclass(frozen=True, kw_only=True)
class VLLM(InferenceEngine):
    """vLLM, in processes of its own. Field names are its own."""

    requires: ClassVar[Mapping[str, str]] = {"vllm": "vllm"}

    tensor_parallel_size: Count = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: Count = 1
    """Groups of GPUs that share the layers out."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together; null takes the model's."""
    max_num_batched_tokens: Count | None = None
    """Tokens that one forward pass takes at most."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of each GPU's memory for weights, keys and values."""
    kv_cache_gb: Count = 1
    """Memory for keys and values on a CPU, in 2^30 bytes."""
    enforce_eager: bool = False
    """Run without compiling the model or capturing CUDA graphs."""
    enable_prefix_caching: bool = True
    """Keep keys and values of prompts that begin alike."""
    quantization: str | None = None
    """How weights are quantized; null reads it from the model."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        ranks = self.tensor_parallel_size * self.pipeline_parallel_size
        if run.hardware.device == "cuda" and ranks > run.hardware.ranks:
            yield Problem(
                f"{key}.tensor_parallel_size",
                self.tensor_parallel_size,
                f"with pipeline_parallel_size={self.pipeline_parallel_size} this takes {ranks} "
                f"GPUs, and the hardware has {run.hardware.ranks}",
                "give a smaller one, or other hardware",
                also=(f"{key}.pipeline_parallel_size", "hardware.devices_per_node"),
            )

    def load(self, model: Path, run: RunSpec) -> Engine:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.vllm_engine import VLLMEngine

        return VLLMEngine(model, run, self)
