"""The transformers engine, loaded and asked by tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyllm.inference.engine_protocol import TokenLogprob
from easyllm.inference.hf.engine import HFEngine
from easyllm.spec.inference import SamplingSpec
from tests.support import merged, run_spec

PROMPTS = ["abc", "The quick brown fox jumps", "z", "hello there", "0123456789" * 3]
GREEDY = SamplingSpec(max_tokens=20)
WARM = SamplingSpec(max_tokens=20, temperature=1.0, top_p=0.9, top_k=50, seed=5)
FIRM = SamplingSpec(max_tokens=20, repetition_penalty=1.3)

LOADED: list[HFEngine] = []
"""Engines that are closed when a test has ended."""


def load(folder: Path, batch_size: int = 8, **config: Any) -> HFEngine:
    plain = {"model": {"dtype": "float32"}, "inference": {"batch_size": batch_size}}
    run = run_spec(folder, merged(plain, config))
    engine = run.inference.engine.load(folder, run)
    LOADED.append(engine)
    return engine


@dataclass
class Made:
    """A whole answer."""

    tokens: list[int] = field(default_factory=list)
    finish_reason: str | None = None
    logprobs: list[TokenLogprob] = field(default_factory=list, compare=False)


async def complete(engine: HFEngine, prompt: Sequence[int], sampling: SamplingSpec) -> Made:
    made = Made()
    async for step in engine.generate(prompt, sampling):
        assert made.finish_reason is None
        made.tokens += step.tokens
        made.logprobs += step.logprobs
        made.finish_reason = step.finish_reason
    return made


def generate(
    engine: HFEngine, prompts: Sequence[Sequence[int]], *samplings: SamplingSpec
) -> list[Made]:
    """Answers to all prompts, generated together, each with a sampling of its own or the one."""
    each = samplings * len(prompts) if len(samplings) == 1 else samplings

    async def all_() -> list[Made]:
        return await asyncio.gather(
            *(complete(engine, p, s) for p, s in zip(prompts, each, strict=True))
        )

    return asyncio.run(all_())


def encode(engine: HFEngine) -> list[list[int]]:
    return [engine.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
