"""How an answer's tokens go from the thread that generates to the event loop that reads them."""

from __future__ import annotations

import asyncio

import pytest
from transformers.generation.continuous_batching.requests import GenerationOutput, RequestStatus

from easyllm.inference.engine_protocol import EngineFailed, Step
from easyllm.inference.hf import engine
from easyllm.inference.hf.engine import Answer, StepRouter
from easyllm.inference.token_stream import InLoop, StreamReader
from easyllm.spec.inference import SamplingSpec


def output(name: str, tokens: int, **more: object) -> GenerationOutput:
    status = more.pop("status", RequestStatus.DECODING)
    return GenerationOutput(name, generated_tokens=list(range(tokens)), status=status, **more)  # type: ignore[arg-type]


def answers(*names: str) -> tuple[dict[str, Answer], dict[str, StreamReader]]:
    """As the generation has them, and as their readers do."""
    take, readers = InLoop(asyncio.get_running_loop()), {name: StreamReader() for name in names}
    return {
        name: Answer(SamplingSpec(), 1, frozenset(), take, reader)
        for name, reader in readers.items()
    }, readers


def test_many_answers_come_in_fewer_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first token and the end at once; what is passed over comes with the next."""
    monkeypatch.setattr(engine, "INTERVAL", 1000.0)
    monkeypatch.setattr(engine, "LONGEST_INTERVAL", 1000.0)

    async def told() -> list[Step]:
        waiting, readers = answers("a", "b")
        router, found = StepRouter(waiting), []
        for tokens in (1, 2, 3):
            router.deliver_batch([output("a", tokens), output("aborted", tokens)])
            await asyncio.sleep(0)
            if readers["a"].ready:
                found.append(await readers["a"].next())
        router.deliver_batch([output("b", 1), output("a", 4, status=RequestStatus.FINISHED)])
        await asyncio.sleep(0)
        return [*found, await readers["a"].next(), await readers["b"].next()]

    first, last, other = asyncio.run(told())
    assert (first.tokens, first.finish_reason) == ([0], None)
    assert (last.tokens, last.finish_reason) == ([1, 2, 3], "length")
    assert (other.tokens, other.finish_reason) == ([0], None)


def test_one_answer_comes_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "INTERVAL", 1000.0)

    async def told() -> list[list[int]]:
        (waiting, readers), found = answers("a"), []
        router = StepRouter(waiting)
        for tokens in range(1, 6):
            router.deliver_batch([output("a", tokens)])
            found.append((await readers["a"].next()).tokens)
        return found

    assert asyncio.run(told()) == [[0], [1], [2], [3], [4]]


def test_what_comes_while_the_reader_is_busy_is_one_step() -> None:
    async def told() -> tuple[Step, Step]:
        answer = StreamReader()
        answer.hand_over(Step([1]))
        answer.hand_over(Step([2], finish_reason=None))
        before = await answer.next()
        reading = asyncio.ensure_future(answer.next())
        await asyncio.sleep(0)
        answer.hand_over(Step([3], finish_reason="stop"))
        return before, await reading

    before, after = asyncio.run(told())
    assert before.tokens == [1, 2] and before.finish_reason is None
    assert after.tokens == [3] and after.finish_reason == "stop"


def test_a_failure_is_not_lost_behind_steps() -> None:
    async def read() -> None:
        waiting, readers = answers("a")
        router = StepRouter(waiting)
        router.deliver(output("a", 1, error="out of memory"))
        router.deliver(output("a", 2))
        await asyncio.sleep(0)
        await readers["a"].next()

    with pytest.raises(EngineFailed, match="out of memory"):
        asyncio.run(read())
