"""What a client may ask of the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from easyllm.data.chat import beside
from easyllm.data.chat.values import is_empty
from easyllm.inference import request_params
from easyllm.serving.errors import Refused
from easyllm.spec.inference import SamplingSpec

MAX_LOGPROBS = 20

TokenCount = Annotated[int, Field(ge=0, le=1 << 31)]
Id = Annotated[int, Field(ge=0, le=1 << 31)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Stop = Annotated[list[Annotated[str, Field(min_length=1, max_length=1000)]], Field(max_length=16)]


NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    **request_params.NOT_TAKEN_UP,
    **beside.DEFAULTS,
    "tools": (),
    "functions": (),
    # without tools these have no effect
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
}
"""Parameters of OpenAI's and vLLM's servers that this server does not have, with the values,
besides null and empty ones, that ask for nothing."""
ASKED_BY_EMPTY = frozenset({"web_search_options"})
"""Parameters that ask for something with an empty object."""


class Strict(BaseModel):
    """Accepts known fields of the right type only, so that nothing asked for is ignored.

    A value that asks for nothing is accepted under any name: null, and for a parameter that is
    not offered an empty value or one of ``not_offered``.
    """

    model_config = ConfigDict(extra="forbid", strict=True)
    not_offered: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _asking(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {key: value for key, value in given.items() if cls._asks(key, value)}

    @classmethod
    def _asks(cls, key: str, value: Any) -> bool:
        if field := cls.model_fields.get(key):
            return value is not None or field.is_required()
        if is_empty(value):
            return value is not None and key in ASKED_BY_EMPTY
        return value not in cls.not_offered.get(key, ())


class Sampling(Strict):
    """Fields of ``SamplingSpec``; one that is left out or null takes the server's value."""

    max_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    min_tokens: TokenCount | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=1 << 31)] | None = None
    """0 and, as vLLM has it, -1 take all."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    stop: Stop | Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    stop_token_ids: Annotated[list[Id], Field(max_length=1024)] | None = None
    ignore_eos: bool | None = None
    n: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    seed: Seed | None = None

    def over(self, default: SamplingSpec, **more: Any) -> SamplingSpec:
        """The server's sampling, overridden by the request's fields and ``more``."""
        own = {name: getattr(self, name) for name in Sampling.model_fields}
        given = {key: value for key, value in {**own, **more}.items() if value is not None}
        if given.get("top_k") == -1:
            given["top_k"] = 0
        stop = given.get("stop")
        if isinstance(stop, str):
            given["stop"] = (stop,)
        for key in ("stop", "stop_token_ids"):
            if key in given:
                given[key] = tuple(given[key])
        return dataclasses.replace(default, **given)


class GenerateRequest(Strict):
    """The original's request: a conversation to continue."""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    """Turns, oldest first, each ``{"user": TEXT}`` or ``{"role": "user", "content": TEXT}``."""
    stream: bool | None = None
    sampling: Sampling | None = None


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    """Accepted and ignored: nothing here is padded."""


class OpenAIRequest(Sampling):
    """What completions and chat completions have in common."""

    not_offered = NOT_OFFERED

    model: str | None = None
    """The name that ``/v1/models`` lists; null takes the only model."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Accepted for OpenAI's clients, as are the next fields; without effect."""
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    @property
    def usage_in_stream(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(OpenAIRequest):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=1 << 31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None

    def sampling(self, default: SamplingSpec) -> SamplingSpec:
        """The server's sampling, overridden by the request's. Raises Refused."""
        if self.top_logprobs and not self.logprobs:
            message = f"top_logprobs={self.top_logprobs} needs logprobs=true"
            raise Refused(400, message, "top_logprobs")
        return self.over(
            default,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class TokenizeRequest(Strict):
    """vLLM's request for the tokens of a text, or of a conversation to answer."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    add_special_tokens: bool = True
    """Whether those that the tokenizer puts around every text are added to ``prompt``."""
    return_token_strs: bool | None = None


class CompletionRequest(OpenAIRequest):
    prompt: str | list[str] | list[Id] | list[list[Id]]
    """A text or its token ids, or several of either."""
    echo: bool | None = None
    """Whether answers begin with their prompts, and with the prompts' log-probabilities."""
    max_tokens: TokenCount | None = None
    """With ``echo`` it may be 0."""
    logprobs: Annotated[
        Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None,
        BeforeValidator(lambda value: None if value is False else value),  # as chats have it
    ] = None

    def sampling(self, default: SamplingSpec) -> SamplingSpec:
        """The server's sampling, overridden by the request's. Raises Refused."""
        if self.max_tokens == 0 and not self.echo:
            raise Refused(400, "max_tokens: 0 needs echo=true", "max_tokens")
        return self.over(default, logprobs=self.logprobs)

    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one; a list of token ids is one prompt."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if given and all(isinstance(token, int) for token in given):
            return [list(given)]  # type: ignore[arg-type]
        return list(given)  # type: ignore[arg-type]
