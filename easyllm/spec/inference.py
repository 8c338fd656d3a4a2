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
    """How an answer is drawn; the names are those of vLLM's ``SamplingParams``."""

    max_tokens: Count = 128
    """Tokens to generate at most."""
    min_tokens: NonNegativeInt = 0
    """Tokens before which no end-of-sequence token is drawn."""
    temperature: NonNegativeFloat = 0.0
    """0 takes the likeliest token."""
    top_p: Fraction = 1.0
    """Draw from the likeliest tokens whose probabilities add up to this."""
    top_k: NonNegativeInt = 0
    """Candidates to sample from; 0 takes all."""
    min_p: Fraction = 0.0
    """Drop tokens less likely than this share of the likeliest one's probability."""
    repetition_penalty: PositiveFloat = 1.0
    """Divides the scores of tokens that the prompt or the answer has already."""
    presence_penalty: float = 0.0
    """Taken from the scores of tokens that the answer has already."""
    frequency_penalty: float = 0.0
    """The same, once for each time the answer has the token."""
    stop: tuple[str, ...] = ()
    """Texts that end an answer; they are not part of it."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer, besides the model's own."""
    ignore_eos: bool = False
    """Go on after an end-of-sequence token, for measurements."""
    logprobs: NonNegativeInt | None = None
    """Likeliest tokens whose log-probabilities are given beside each token's own."""
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
    """Prompts by name, or a file: ``.jsonl``, ``.json`` or ``.parquet`` with ``prompt`` or
    ``messages`` and perhaps ``id``, ``tools`` and fields of ``sampling`` of their own, or with
    the lines of OpenAI's batch files; anything else one prompt a line."""
    chat: bool = False
    """Put each prompt into the chat template as a user's turn; ``messages`` always are."""
    output: Place | None = None
    """The file of results, ``.jsonl`` or ``.parquet``; null writes
    ``inference/results.jsonl`` in the run."""
    batch_size: Count = 32
    """Answers generated together at most, by batch inference as by the server."""
    sampling: SamplingSpec = nested(SamplingSpec)


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """The API server. Keys of clients come from ``api_key_file`` and from the environment's
    ``EASYLLM_API_KEY``; with neither every client of this machine may ask."""

    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all that reach this machine."""
    port: Port = 8000
    """Port to listen at."""
    model_name: str | None = None
    """The model's name in ``/v1/models`` and answers; null takes the name of its run, folder or
    file, or its hub id."""
    api_key_file: Place | None = None
    """A file of keys, one a line; ``#`` begins a comment at a line's start or after a blank."""
    allowed_hosts: tuple[str, ...] = ()
    """Names in the header Host by which clients may ask, besides localhost and ``host``. Others
    are refused where names are given, and where a server without a key listens to its own machine
    only: a browser's page of a site whose name leads to this machine would ask by that name."""
    allow_unauthenticated: bool = False
    """Listen beyond this machine without any key."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may ask from a browser, such as https://chat.example.org."""
    context_overflow: Literal["refuse", "drop_oldest_turns"] = "refuse"
    """What becomes of a conversation longer than the context: an error that says both
    lengths, or its oldest turns are left out, a system message and the last turn never."""
    max_queue: Count = 256
    """Answers that may wait for their turn beside those being generated; more get 429."""
    max_tokens: Count | None = None
    """Largest ``max_tokens`` a client may ask for; null allows the model's context."""
    max_prompt_tokens: Count | None = None
    """Longest prompt; null allows the model's context."""
    max_n: Count = 16
    """Answers a prompt at most."""
    max_batch: Count = 64
    """Prompts of one request at most."""
    max_body_mb: PositiveFloat = 4.0
    """Largest body of a request, in 10^6 bytes."""
    body_seconds: PositiveFloat = 30.0
    """Seconds a client may take to send a request's body."""
    max_header_kb: PositiveFloat = 64.0
    """Largest headers of a request, in 10^3 bytes."""
    header_seconds: PositiveFloat = 10.0
    """Seconds a client may take to send a request's headers."""
    grace_seconds: NonNegativeFloat = 30.0
    """Seconds that answers under way get once the server is asked to stop."""
    log_prompts: bool = False
    """Put prompts and answers into the access log."""
