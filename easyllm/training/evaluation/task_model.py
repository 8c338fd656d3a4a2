"""The model in training as lm-eval asks it. Imports lm-eval."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from easyllm.errors import UserError
from easyllm.tasks.model import TokenizedModel


class TaskModel(TokenizedModel):
    """Gives the log-probabilities of continuations; it does not generate."""

    def __init__(
        self,
        score: Callable[[Sequence[Any]], Sequence[Any]],
        without: Mapping[str, str],
        tokenizer: Any,
        max_length: int,
    ):
        """``score`` takes pairs of a context and a continuation, as token ids; ``without`` says why
        it does nothing else."""
        super().__init__(tokenizer, max_length)
        self.score, self.without = score, without

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        asked = []
        for _key, context, continuation in requests:
            own = continuation[-(self.max_length - 1) :]
            # the last tokens that fit, as lm-eval's own classes take them
            asked.append((context[-(self.max_length - len(own)) :], own))
        return [(scored.logprob, scored.greedy) for scored in self.score(asked)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise UserError(self.without["loglikelihood_rolling"])

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise UserError(self.without["generate_until"])
