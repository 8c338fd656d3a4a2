"""The answers of a request as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from easyllm.inference.detokenizer import Piece, answer, prompt_piece
from easyllm.inference.engine_protocol import Engine, TokenLogprob
from easyllm.spec.inference import SamplingSpec

Pieces = list[tuple[int, Piece]]
"""Pieces of the answers of a request, each with its answer's number."""


@dataclass(frozen=True)
class Ask:
    """One answer to generate."""

    prompt: list[int]
    sampling: SamplingSpec
    echo: bool = False
    """Whether the answer begins with the prompt."""
    text: str | None = None
    """What the prompt was given as, if not as tokens."""


def growing(engine: Engine, asks: Sequence[Ask]) -> AsyncGenerator[Piece | Pieces, None]:
    """The answers as they grow; of a single one its pieces without a number."""
    if len(asks) == 1:  # without a separate task and queue
        return _pieces(engine, asks[0])
    return _merged(engine, asks)


def _pieces(engine: Engine, ask: Ask) -> AsyncGenerator[Piece, None]:
    return _echoing(engine, ask) if ask.echo else answer(engine, ask.prompt, ask.sampling)


async def _echoing(engine: Engine, ask: Ask) -> AsyncGenerator[Piece, None]:
    """The prompt, and the answer unless ``max_tokens`` is 0."""
    logprobs: list[TokenLogprob] | None = None
    if ask.sampling.logprobs is not None:
        alone = len(ask.prompt) == 1
        logprobs = [] if alone else await engine.score(ask.prompt, ask.sampling.logprobs)
    piece = prompt_piece(engine.tokenizer, ask.prompt, ask.text, logprobs)
    if not ask.sampling.max_tokens:
        piece.finish_reason = "length"
    yield piece
    if ask.sampling.max_tokens:
        async with aclosing(answer(engine, ask.prompt, ask.sampling, ending=True)) as pieces:
            async for following in pieces:
                yield following


async def _merged(engine: Engine, asks: Sequence[Ask]) -> AsyncGenerator[Pieces, None]:
    """The pieces of all answers; those that came while the caller was busy come together."""
    queue: asyncio.Queue[tuple[int, Piece] | BaseException] = asyncio.Queue()

    async def pump(index: int, ask: Ask) -> None:
        try:
            async with aclosing(_pieces(engine, ask)) as pieces:
                async for piece in pieces:
                    queue.put_nowait((index, piece))
        except Exception as error:
            queue.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, ask)) for index, ask in enumerate(asks)]
    left = len(asks)
    try:
        while left:
            got = [await queue.get()]
            while not queue.empty():
                got.append(queue.get_nowait())
            came: Pieces = []
            for item in got:
                if isinstance(item, BaseException):
                    raise item
                came.append(item)
                left -= item[1].finish_reason is not None
            yield came
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
