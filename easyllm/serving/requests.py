"""What a client may ask of the server."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from easyllm.spec.run import SamplingSpec

ROLES = ("system", "user", "assistant")
SHAPE = 'a message is {"user": TEXT}, with system, user or assistant, or {"role": …, "content": …}'


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Sampling(_Strict):
    """Fields of ``SamplingSpec``; what is left out is taken from the server's own spec."""

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    seed: Annotated[int, Field(ge=0)] | None = None

    def over(self, default: SamplingSpec) -> SamplingSpec:
        return dataclasses.replace(default, **self.model_dump(exclude_none=True))


class GenerateRequest(_Strict):
    """A conversation to go on with."""

    messages: Annotated[list[dict[str, str]], Field(min_length=1)]
    """Turns, oldest first, each ``{"user": TEXT}`` or ``{"role": "user", "content": TEXT}``."""
    stream: bool = False
    sampling: Sampling = Sampling()

    @field_validator("messages")
    @classmethod
    def _turns(cls, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return [_turn(message) for message in messages]


def _turn(message: dict[str, str]) -> dict[str, str]:
    """A message as ``{"role": …, "content": …}``."""
    if message.keys() == {"role", "content"}:
        turn = message
    elif len(message) == 1:
        [(role, content)] = message.items()
        turn = {"role": role, "content": content}
    else:
        raise ValueError(f"{SHAPE}, not one with the keys [{', '.join(message)}]")
    if turn["role"] not in ROLES:
        raise ValueError(f"{SHAPE}, not of {turn['role']!r}")
    return turn
