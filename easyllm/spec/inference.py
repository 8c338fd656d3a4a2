"""The spec of batch inference and of the API server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from easyllm.spec.fields import component, empty, nested
from easyllm.spec.roles import InferenceEngine
from easyllm.spec.types import (
    Count,
    Fraction,
    ModelPath,
    NonNegativeFloat,
    NonNegativeInt,
    Place,
    Port,
    PositiveFloat,
)


@dataclass(frozen=True, kw_only=True)
class SamplingSpec:
    """How an answer is sampled; the names are those of vLLM's ``SamplingParams``."""

    max_tokens: Count = 128
    """Most tokens to generate."""
    min_tokens: NonNegativeInt = 0
    """Tokens to generate before an end-of-sequence token may be sampled."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the most likely token."""
    top_p: Fraction = 1.0
    """Sample from the most likely tokens whose probabilities add up to this."""
    top_k: NonNegativeInt = 0
    """Sample from this many most likely tokens; 0 takes all."""
    min_p: Fraction = 0.0
    """Drop tokens that are less likely than this share of the most likely token's probability."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides the scores of tokens that are already in the prompt or the answer."""
    presence_penalty: float = 0.0
    """Subtracted from the scores of tokens that are already in the answer."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's score once for each time the answer has the token."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's own."""
    ignore_eos: bool = False
    """Continue after an end-of-sequence token, for measurements."""
    logprobs: NonNegativeInt | None = None
    """Number of most likely tokens whose log-probabilities are given besides the sampled
    token's."""
    n: Count = 1
    """Answers to each prompt."""
    seed: NonNegativeInt | None = None
    """Seed of the sampling; null takes the run's."""


@dataclass(frozen=True, kw_only=True)
class InferenceSpec:
    engine: InferenceEngine = component("easyllm.inference.engines.Transformers")
    """What generates text, in batch inference and in the server."""
    model: ModelPath | None = None
    """A folder in Hugging Face's format or a hub id; null takes the run's export, or
    ``model.path`` where the run has none."""
    prompts: Place | dict[str, str] = empty()
    """Prompts by name, or a file. A ``.jsonl``, ``.json`` or ``.parquet`` file has ``prompt`` or
    ``messages``, and optionally ``id``, ``tools`` and fields of ``sampling``, for each prompt, or
    it has the lines of OpenAI's batch files. Any other file has one prompt a line."""
    chat: bool = False
    """Put each prompt into the chat template as a user's turn. ``messages`` always go through the
    chat template."""
    output: Place | None = None
    """The file of results, ``.jsonl`` or ``.parquet``; null writes
    ``inference/results.jsonl`` in the run."""
    batch_size: Count = 32
    """Most answers generated at the same time, in batch inference and in the server."""
    sampling: SamplingSpec = nested(SamplingSpec)


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """The API server. The API keys of clients come from ``api_key_file`` and from the environment
    variable ``EASYLLM_API_KEY``. Without any key, every client on this machine may send
    requests."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 listens on every network interface."""
    port: Port = 8000
    """Port to listen on."""
    model_name: str | None = None
    """The model's name in ``/v1/models`` and answers; null takes the name of its run, folder or
    file, or its hub id."""
    api_key_file: Place | None = None
    """A file of API keys, one a line; ``#`` at a line's start or after a blank begins a
    comment."""
    allowed_hosts: tuple[str, ...] = ()
    """Names that clients may send in the ``Host`` header, besides localhost and ``host``. Requests
    with other names are refused if names are given here, or if the server has no API key and
    listens on this machine only. That stops the page of a web site whose name resolves to this
    machine from sending requests through a browser."""
    allow_unauthenticated: bool = False
    """Allow a server without any API key to listen on addresses that other machines reach."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may send requests from a browser, such as https://chat.example.org."""
    context_overflow: Literal["refuse", "drop_oldest_turns"] = "refuse"
    """What happens to a conversation longer than the context. ``refuse`` answers with an error
    that gives both lengths. ``drop_oldest_turns`` leaves out its oldest turns, but never a system
    message or the last turn."""
    max_queue: Count = 256
    """Most answers that wait while others are generated; further requests get 429."""
    max_tokens: Count | None = None
    """Largest ``max_tokens`` a client may ask for; null allows the model's context."""
    max_prompt_tokens: Count | None = None
    """Longest prompt; null allows the model's context."""
    max_n: Count = 16
    """Most answers to a prompt."""
    max_batch: Count = 64
    """Most prompts in one request."""
    max_body_mb: PositiveFloat = 4.0
    """Largest body of a request, in 10^6 bytes."""
    body_seconds: PositiveFloat = 30.0
    """Seconds a client may take to send a request's body."""
    max_header_kb: PositiveFloat = 64.0
    """Largest headers of a request, in 10^3 bytes."""
    header_seconds: PositiveFloat = 10.0
    """Seconds a client may take to send a request's headers."""
    grace_seconds: NonNegativeFloat = 30.0
    """Seconds that unfinished answers get once the server is asked to stop."""
    log_prompts: bool = False
    """Put prompts and answers into the access log."""
