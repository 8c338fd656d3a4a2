"""Generation by transformers' own ``generate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.utils import logging

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.errors import UserError
from easyllm.inference.engines import Completion, room
from easyllm.spec.run import RunSpec, SamplingSpec


class HFGenerator:
    """An ``easyllm.inference.engines.Generator`` over one model on one device."""

    def __init__(self, folder: Path, run: RunSpec):
        device = run.hardware.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "hardware.device=cuda: torch finds no CUDA device; give hardware.device=cpu"
            )
        logging.disable_progress_bar()
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
            model: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, run.model.dtype),
                attn_implementation=run.model.attention,
            )
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"{folder}: transformers cannot load this model and its tokenizer: {error}"
            ) from error
        self.model = model.to(device).eval()
        self.seed = run.seed
        self.batch_size = run.inference.batch_size
        config = model.config.get_text_config()
        # beyond what Qwen calls its seq_length its positions must be stretched, which is not done
        self.max_positions: int = min(
            config.max_position_embeddings,
            getattr(config, "seq_length", config.max_position_embeddings),
        )
        self.stops = _stops(model, self.tokenizer)
        # generate() takes from here what it is not given, so a sampling spec would not be all.
        model.generation_config = GenerationConfig()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSpec,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[Completion]:
        rooms = [room(self, prompt, sampling) for prompt in prompts]
        # Prompts of like length share a batch, so that little of it is padding, and none is
        # in a batch that goes on past its last position.
        order = sorted(range(len(prompts)), key=lambda index: (rooms[index], len(prompts[index])))
        done: dict[int, Completion] = {}
        with self._draws(sampling):
            for limit, alike in groupby(order, key=rooms.__getitem__):
                indices = list(alike)
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    rows = [prompts[index] for index in batch]
                    count = _counter(self.stops, advance)
                    made = self._complete(rows, limit, sampling, count)
                    done |= zip(batch, made, strict=True)
        return [done[index] for index in range(len(prompts))]

    def stream(
        self, prompt: Sequence[int], sampling: SamplingSpec, tell: Callable[[Completion], bool]
    ) -> None:
        limit = room(self, prompt, sampling)
        tokens: list[int] = []

        def grow(step: list[int]) -> bool:
            tokens.extend(step)
            return tell(self._completion(tokens, limit))

        with self._draws(sampling):
            self._complete([prompt], limit, sampling, grow)

    def _complete(
        self,
        prompts: Sequence[Sequence[int]],
        limit: int,
        sampling: SamplingSpec,
        tell: Callable[[list[int]], bool],
    ) -> list[Completion]:
        """Complete a batch, ``limit`` tokens each at most; ``tell`` as in ``_Listener``."""
        width = max(map(len, prompts))
        gaps = [width - len(prompt) for prompt in prompts]
        # The repetition penalty does not see the mask: a row is padded with a token of its own.
        ids = [[p[0]] * gap + list(p) for gap, p in zip(gaps, prompts, strict=True)]
        mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
        device = self.model.device
        rows = self.model.generate(
            input_ids=torch.tensor(ids, device=device),
            attention_mask=torch.tensor(mask, device=device),
            generation_config=self._settings(limit, sampling),
            stopping_criteria=StoppingCriteriaList([_Listener(tell)]),
        )
        return [self._completion(row, limit) for row in rows[:, width:].tolist()]

    def _settings(self, limit: int, sampling: SamplingSpec) -> GenerationConfig:
        drawn: dict[str, Any] = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
        return GenerationConfig(
            max_new_tokens=limit,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=self.stops or None,
            pad_token_id=self.stops[0] if self.stops else 0,  # fills a row after its end
            **(drawn if sampling.temperature else {}),
        )

    def _completion(self, tokens: list[int], limit: int) -> Completion:
        ends = [tokens.index(stop) for stop in self.stops if stop in tokens]
        if ends:
            return Completion(tokens[: min(ends)], "stop")
        return Completion(list(tokens), "length" if len(tokens) == limit else None)

    def _draws(self, sampling: SamplingSpec) -> AbstractContextManager[Any]:
        if not sampling.temperature:
            return nullcontext()
        seed = self.seed if sampling.seed is None else sampling.seed
        return _Draws(torch.Generator(self.model.device).manual_seed(seed))


class _Draws(TorchFunctionMode):
    """Draws this thread's samples from ``generator``.

    ``generate`` has no argument for one, and torch's global one is shared by all threads.
    """

    def __init__(self, generator: torch.Generator):
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        more = {"generator": self.generator} if func is torch.multinomial else {}
        return func(*args, **(kwargs or {}), **more)


class _Listener(StoppingCriteria):
    """Tells of each step's tokens, one a row, and ends all rows once ``tell`` returns False."""

    def __init__(self, tell: Callable[[list[int]], bool]):
        self.tell = tell

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        done = not self.tell(input_ids[:, -1].tolist())
        return torch.full((len(input_ids),), done, device=input_ids.device)


def _counter(stops: list[int], advance: Callable[[int], None]) -> Callable[[list[int]], bool]:
    """A ``tell`` that counts the tokens of the rows that have not ended."""
    ended: set[int] = set()

    def tell(step: list[int]) -> bool:
        ended.update(row for row, token in enumerate(step) if token in stops)
        advance(len(step) - len(ended))
        return True

    return tell


def _stops(model: Any, tokenizer: Any) -> list[int]:
    """Tokens that end a completion: those of the generation config and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({id_ for id_ in (*ids, tokenizer.eos_token_id) if id_ is not None})
