"""The spec of the comparisons of what was trained with what is served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from easyllm.spec.types import Count, Range


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    documents: Count = 4
    """Documents and conversations that are followed, of each source and of the held-out ones."""
    max_tokens: Annotated[int, Range(low=2, high=1 << 20)] = 256
    """Most tokens of each that are given to the model."""
    new_tokens: Count = 20
    """Tokens of each greedy answer."""
    url: str | None = None
    """A server with OpenAI's routes that is compared too, such as http://127.0.0.1:8000. Its API
    key comes from the environment variable ``EASYLLM_API_KEY``."""
