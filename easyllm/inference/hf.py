"""Generation with transformers' own model classes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyllm.errors import UserError
from easyllm.inference.engines import Completion, Steps
from easyllm.inference.sampling import choose
from easyllm.spec.run import RunSpec, SamplingSpec


class HFGenerator:
    """An ``easyllm.inference.engines.Generator`` over one model on one device."""

    def __init__(self, folder: Path, run: RunSpec):
        device = run.hardware.device
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "hardware.device=cuda: torch finds no CUDA device; give hardware.device=cpu"
            )
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
        self.device = torch.device(device)
        self.seed = run.seed
        self.batch_size = run.inference.batch_size
        config = self.model.config.get_text_config()
        self.vocab_size: int = config.vocab_size
        self.max_positions: int = config.max_position_embeddings
        self.stops = _stops(self.model, self.tokenizer)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingSpec,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> list[Completion]:
        limits = [self._room(prompt, sampling) for prompt in prompts]
        # Prompts of like length share a batch, so that little of it is padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        done: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            rows = [_Row(index, prompts[index], limits[index], self, sampling) for index in batch]
            for made in self._decode(rows, sampling):
                advance(made)
            done |= {row.index: row.completion() for row in rows}
        return [done[index] for index in range(len(prompts))]

    def stream(self, prompt: Sequence[int], sampling: SamplingSpec) -> Steps:
        row = _Row(0, prompt, self._room(prompt, sampling), self, sampling)
        return (row.completion() for _ in self._decode([row], sampling))

    def _room(self, prompt: Sequence[int], sampling: SamplingSpec) -> int:
        """Tokens that may follow a prompt."""
        room = self.max_positions - len(prompt)
        if not prompt:
            raise UserError("a prompt is empty; give it at least one token")
        if room < 1:
            raise UserError(
                f"the prompt that begins {self.tokenizer.decode(prompt[:12])!r} has {len(prompt)} "
                f"tokens, and the model has {self.max_positions} positions for the prompt and "
                "what follows; shorten it"
            )
        return min(room, sampling.max_tokens)

    @torch.inference_mode()
    def _decode(self, rows: list[_Row], sampling: SamplingSpec) -> Iterator[int]:
        """Write one more token to each unfinished row at a time; yields how many were written.

        Prompts are padded on the left, so that every row's next token is its last column.
        """
        width = max(len(row.prompt) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[i, width - len(row.prompt) :] = 1
        ids, mask = ids.to(self.device), mask.to(self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        seen = torch.zeros(len(rows), self.vocab_size, dtype=torch.bool, device=self.device)
        for i, row in enumerate(rows):
            seen[i, ids[i, width - len(row.prompt) :]] = True
        cache = None
        while True:
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = out.past_key_values
            draws = [row.random.random() for row in rows]
            ids = choose(out.logits[:, -1], seen, sampling, draws)
            made = sum(row.take(token) for row, token in zip(rows, ids.tolist(), strict=True))
            yield made
            if all(row.reason for row in rows):
                return
            ids = ids[:, None]
            seen.scatter_(1, ids, True)
            mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
            # A finished row goes on beside the others and must not run out of positions.
            positions = (positions[:, -1:] + 1).clamp(max=self.max_positions - 1)


class _Row:
    """One prompt and its growing completion."""

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        limit: int,
        generator: HFGenerator,
        sampling: SamplingSpec,
    ):
        self.index = index
        self.prompt = list(prompt)
        self.limit = limit
        self.stops = generator.stops
        self.tokens: list[int] = []
        self.reason: Any = None
        seed = generator.seed if sampling.seed is None else sampling.seed
        # Drawn from the prompt's place in the list: the batch it falls into does not matter.
        self.random = random.Random(f"{seed}:{index}")

    def take(self, token: int) -> int:
        """Add a token to an unfinished row; returns how many were added, 0 or 1."""
        if self.reason:
            return 0
        if token in self.stops:
            self.reason = "stop"
            return 0
        self.tokens.append(token)
        if len(self.tokens) == self.limit:
            self.reason = "length"
        return 1

    def completion(self) -> Completion:
        return Completion(list(self.tokens), self.reason)


def _stops(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a completion: those of the generation config and the tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(id_ for id_ in (*ids, tokenizer.eos_token_id) if id_ is not None)
