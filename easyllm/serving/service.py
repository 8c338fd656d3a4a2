"""One loaded model for many clients: limits, prompts, answers under way."""

from __future__ import annotations

import asyncio
import bisect
import dataclasses
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from easyllm.data.chat.messages import BadMessage
from easyllm.errors import BadRecord, UserError
from easyllm.inference.detokenizer import Piece
from easyllm.inference.engine_protocol import Engine, EngineFailed
from easyllm.inference.prompts import conversation, encode_messages, encode_text
from easyllm.serving.answers import Ask, Pieces, growing
from easyllm.serving.errors import Refused
from easyllm.serving.metrics import Counts, Metrics
from easyllm.spec.inference import SamplingSpec
from easyllm.spec.run import RunSpec

PATIENCE = 60.0
"""Seconds that a request waits for a model that is still loading."""

SHORT = 2000
"""Characters that are encoded in about a millisecond."""


@dataclass
class Note:
    """What is known of a request, for the access log and the metrics."""

    id: str
    route: str
    begun: float = field(default_factory=time.perf_counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_seconds: float | None = None
    prompt: Any = None
    answers: list[str] | None = None
    """Filled where ``serving.log_prompts`` asks for it, as ``prompt`` is."""


class Service:
    """Answers the requests of one server; used from its event loop only."""

    def __init__(self, run: RunSpec, model: str):
        self.run = run
        self.model = model
        """The model's name, as clients know it."""
        self.engine: Engine | None = None
        """None while the model is loading."""
        self.draining = False
        """Whether the server is about to stop and takes no new requests."""
        self.requests = 0
        """Requests accepted so far."""
        self.tokens = 0
        """Tokens generated so far."""
        self.active = 0
        """Answers that wait or are being generated."""
        self._for_model = 0
        self._encoder = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._encoding: set[Future[list[int]]] = set()
        self.metrics = Metrics(self._waiting, lambda: self.active - self._waiting())

    def _waiting(self) -> int:
        return self.engine.waiting if self.engine else 0

    def done(self) -> dict[str, int]:
        """What the stage's record holds."""
        return {"requests": self.requests, "generated_tokens": self.tokens}

    def unready(self) -> str | None:
        """Why no request can be answered now; None where they can."""
        if self.draining:
            return "the server is stopping"
        if self.engine is None:
            return "the model is loading"
        return "the engine has failed" if self.engine.failed else None

    async def loaded(self) -> None:
        """Wait for a model that is still loading; as many requests may wait as in the queue."""
        if self.engine is not None or self._for_model >= self.run.serving.max_queue:
            return
        self._for_model += 1
        try:
            deadline = time.monotonic() + PATIENCE
            while self.engine is None and not self.draining and time.monotonic() < deadline:
                await asyncio.sleep(0.05)
        finally:
            self._for_model -= 1

    def ready(self) -> Engine:
        """The engine. Raises Refused where it cannot answer now."""
        reason = self.unready()
        if reason is not None or self.engine is None:
            raise Refused(503, f"{reason}; try again", headers={"Retry-After": "5"})
        return self.engine

    def check_model(self, name: str | None) -> None:
        """Raises Refused where a client names another model than this one."""
        if name not in (None, self.model):
            message = f"there is no model {name!r} here; this server has {self.model!r}"
            raise Refused(404, message, "model", "model_not_found")

    async def messages(self, messages: Sequence[object]) -> list[int]:
        """Tokens after which the answer to a conversation begins, once the model is loaded.
        Raises Refused."""
        await self.loaded()
        self.ready()
        return await self.encode_beside(self._messages, messages)

    async def texts(self, texts: Sequence[str | list[int]]) -> list[list[int]]:
        """Tokens of texts to continue; those that are tokens already are only checked.
        Raises Refused."""
        await self.loaded()
        self.ready()
        return [await self.encode_beside(self._text, text) for text in texts]

    async def tokenize(self, given: str | Sequence[object], special: bool) -> list[int]:
        """Tokens of a text or a conversation, of any length; with ``special`` a text has those that
        the tokenizer puts around it. Raises Refused."""
        await self.loaded()
        self.ready()
        return await self.encode_beside(partial(self._tokens, special=special), given)

    async def encode_beside(self, encode: Callable[[Any], list[int]], given: Any) -> list[int]:
        """Encode in a thread, or here where the text is short.

        A megabyte takes a second to encode, in which other requests must continue; a short text
        is encoded sooner than a thread starts. A tokenizer is not thread-safe.
        """
        if isinstance(given, str) and len(given) < SHORT and not self._encoding:
            return encode(given)
        job = self._encoder.submit(encode, given)
        self._encoding.add(job)
        job.add_done_callback(self._encoding.discard)
        return await asyncio.wrap_future(job)

    def _tokens(self, given: str | Sequence[object], special: bool = True) -> list[int]:
        if not isinstance(given, str):
            return self._encode(self._turns(given))
        try:
            return encode_text(self.ready().tokenizer, given, special)
        except UserError as error:
            raise Refused(400, str(error), "prompt") from None

    def _turns(self, messages: Sequence[object]) -> list[dict[str, Any]]:
        try:
            return conversation(messages)
        except BadMessage as error:
            key = f"messages.{error.number - 1}"  # as clients count them
            raise Refused(400, f"{key}: {error.reason}", key) from None
        except BadRecord as error:
            raise Refused(400, str(error), "messages") from None

    def _messages(self, messages: Sequence[object]) -> list[int]:
        turns = self._turns(messages)
        prompt = self._encode(turns)
        if len(prompt) > self.longest and self.run.serving.context_overflow == "drop_oldest_turns":
            shorter = _shorter(turns)
            # the first that fits; fewer turns are fewer tokens
            at = bisect.bisect_left(
                shorter, True, key=lambda turns: len(self._encode(turns)) <= self.longest
            )
            if shorter:
                prompt = self._encode(shorter[min(at, len(shorter) - 1)])
        return self._fitting(prompt, "messages")

    def _encode(self, turns: list[dict[str, Any]]) -> list[int]:
        try:
            return encode_messages(self.run, self.ready().tokenizer, turns)
        except UserError as error:
            raise Refused(400, str(error), "messages") from None

    def _text(self, text: str | list[int]) -> list[int]:
        return self._fitting(self._tokens(text) if isinstance(text, str) else text, "prompt")

    @property
    def longest(self) -> int:
        """Tokens of a prompt at most."""
        limit = self.ready().max_positions - 1
        return min(limit, self.run.serving.max_prompt_tokens or limit)

    def _fitting(self, prompt: list[int], param: str) -> list[int]:
        """``prompt``, checked. Raises Refused where it is empty, too long or has unknown tokens."""
        engine = self.ready()
        if not prompt:
            raise Refused(400, "the prompt is empty; give it at least one token", param)
        if len(prompt) > self.longest:
            allowed = (
                f"serving.max_prompt_tokens allows {self.longest}"
                if self.longest < engine.max_positions - 1
                else f"the model's context is {engine.max_positions} tokens for the prompt and "
                "the answer"
            )
            message = f"the prompt has {len(prompt)} tokens, and {allowed}; shorten it"
            raise Refused(400, message, param, "context_length_exceeded")
        size = len(engine.tokenizer)
        if not all(0 <= token < size for token in prompt):
            raise Refused(400, f"a token id is below 0 or above {size - 1}", param)
        return prompt

    def asks(
        self, prompts: Sequence[list[int]], sampling: SamplingSpec, echo: Sequence[Any] = ()
    ) -> list[Ask]:
        """The answers that a request wants, each with its own seed; ``echo`` are the prompts as
        they were given, where answers begin with them. Raises Refused."""
        serving, engine = self.run.serving, self.ready()
        largest = min(serving.max_tokens or engine.max_positions, engine.max_positions)
        for name, value, limit in (
            ("max_tokens", sampling.max_tokens, largest),
            ("n", sampling.n, serving.max_n),
            ("prompt", len(prompts), serving.max_batch),
        ):
            if value > limit:
                what = f"{value} prompts" if name == "prompt" else f"{name}={value}"
                raise Refused(400, f"{what}: this server allows {limit} at most", name)
        if sampling.min_tokens > sampling.max_tokens:
            message = f"min_tokens={sampling.min_tokens} is above max_tokens={sampling.max_tokens}"
            raise Refused(400, message, "min_tokens")
        # The same question gets a new answer each time, and the same answers after each start of
        # the server.
        seed = self.run.seed + self.requests if sampling.seed is None else sampling.seed
        self.requests += 1
        texts = [given if isinstance(given, str) else None for given in echo]
        return [
            Ask(
                prompt, dataclasses.replace(sampling, n=1, seed=seed + index), bool(echo),
                texts[at] if echo else None,
            )
            for at, prompt in enumerate(prompts)
            for index in range(sampling.n)
        ]  # fmt: skip

    async def answer(self, asks: Sequence[Ask], note: Note) -> AsyncGenerator[Pieces, None]:
        """The answers as they grow; closing the generator aborts those under way.

        Raises Refused, before anything is generated, where the queue is full.
        """
        room = self.run.inference.batch_size + self.run.serving.max_queue
        if self.active + len(asks) > room:
            raise Refused(
                429, f"{self.active} answers are under way or wait, of {room}; try again later",
                code="queue_full", headers={"Retry-After": "1"},
            )  # fmt: skip
        engine = self.ready()
        self.active += len(asks)
        prompts = {id(ask.prompt): len(ask.prompt) for ask in asks}  # one is shared by n answers
        note.prompt_tokens = sum(prompts.values())
        counts = self.metrics.counts(note.route)
        counts.prompt_tokens.inc(note.prompt_tokens)
        left = len(asks)
        last = [note.begun] * len(asks)
        try:
            async with aclosing(growing(engine, asks)) as all_pieces:
                async for came in all_pieces:
                    pieces = [(0, came)] if isinstance(came, Piece) else came
                    now = time.perf_counter()
                    for index, piece in pieces:
                        if not piece.tokens and piece.finish_reason is None:
                            continue  # the prompt, repeated
                        self._count(
                            note, counts, piece, now - last[index], last[index] == note.begun
                        )
                        last[index] = now
                        left -= piece.finish_reason is not None
                    yield pieces
        except EngineFailed as error:
            raise Refused(500, f"the engine has failed: {error}", code="engine_failed") from error
        except UserError as error:
            raise Refused(400, str(error)) from None
        finally:
            self.active -= len(asks)
            if left:
                counts.aborted.inc(left)

    def _count(self, note: Note, counts: Counts, piece: Piece, seconds: float, first: bool) -> None:
        count = len(piece.tokens)
        note.completion_tokens += count
        self.tokens += count
        counts.completion_tokens.inc(count)
        if first:
            if note.first_token_seconds is None:
                note.first_token_seconds = seconds
            counts.first_token_seconds.observe(seconds)
        elif count:
            counts.between_tokens_seconds.observe(seconds / count)


def _shorter(turns: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The conversation without its oldest turns, each version with fewer turns: it begins with a
    user's turn, after the system message if there is one."""
    start = 1 if turns and turns[0]["role"] == "system" else 0
    users = [at for at in range(start + 1, len(turns)) if turns[at]["role"] == "user"]
    return [[*turns[:start], *turns[at:]] for at in users]
