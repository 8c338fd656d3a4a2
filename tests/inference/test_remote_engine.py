"""An engine at the other end of a wire answers as it does in place."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest

from easyllm.errors import UserError
from easyllm.inference.engine_protocol import EngineFailed
from easyllm.inference.hf.engine import HFEngine
from easyllm.inference.ipc import Wire, packed, received
from easyllm.inference.remote_engine import EngineServer, RemoteEngine
from easyllm.spec.inference import SamplingSpec
from tests.inference.driven import GREEDY, WARM, complete, encode, load
from tests.support import PATIENCE, wait_for

LONG = SamplingSpec(max_tokens=200, ignore_eos=True)


@pytest.fixture
def engine(folder: Path) -> Iterator[HFEngine]:
    engine = load(folder)
    yield engine
    engine.close()


@pytest.fixture
def end(engine: HFEngine) -> Iterator[socket.socket]:
    """Where the engine can be asked."""
    ours, theirs = socket.socketpair()
    host = EngineServer(engine, Wire(ours))
    listening = threading.Thread(target=host.listen)
    listening.start()
    yield theirs
    theirs.close()
    listening.join(PATIENCE)
    assert not listening.is_alive()
    ours.close()


@asynccontextmanager
async def asking(engine: HFEngine, end: socket.socket) -> AsyncIterator[RemoteEngine]:
    reader, writer = await asyncio.open_unix_connection(sock=end)
    remote = RemoteEngine(
        lambda message: writer.write(packed(message)), engine.tokenizer, engine.max_positions
    )

    async def hear() -> None:
        async for kind, what in received(reader):
            assert kind == "grown"
            remote.take(what)

    hearing = asyncio.create_task(hear())
    yield remote
    writer.close()
    await writer.wait_closed()
    await hearing


def test_the_answers_are_the_same(engine, end) -> None:
    prompts = encode(engine)
    samplings = [GREEDY, WARM, SamplingSpec(max_tokens=12, logprobs=2, seed=3, temperature=1.0)]

    async def both() -> None:
        async with asking(engine, end) as remote:
            for sampling in samplings:
                far, near = [
                    await asyncio.gather(*(complete(one, p, sampling) for p in prompts))
                    for one in (remote, engine)
                ]
                assert far == near
                assert all(len(one.tokens) == len(one.logprobs) or sampling.logprobs is None
                           for one in far)  # fmt: skip
                assert [[t.token for t in one.logprobs] for one in far] == [
                    [t.token for t in one.logprobs] for one in near
                ]
            assert remote.waiting == 0

    asyncio.run(both())


def test_one_who_leaves_ends_the_generation(engine, end) -> None:
    async def leave() -> None:
        async with (
            asking(engine, end) as remote,
            aclosing(remote.generate([1, 2, 3], LONG)) as steps,
        ):
            assert (await anext(steps)).tokens
            assert engine.unfinished == 1
        await asyncio.to_thread(wait_for, lambda: not engine.unfinished)  # it is on its way

    steps: list[None] = []
    counting = engine.model.register_forward_hook(lambda *_: steps.append(None))
    asyncio.run(leave())
    counting.remove()
    assert len(steps) < LONG.max_tokens


def test_what_is_under_way_ends_when_the_engine_fails(engine, end) -> None:
    async def fail() -> None:
        async with asking(engine, end) as remote:
            asyncio.get_running_loop().call_later(0.05, remote.fail)
            with pytest.raises(EngineFailed, match="has stopped"):
                await complete(remote, [1, 2, 3], LONG)
            with pytest.raises(EngineFailed, match="has stopped"):
                await complete(remote, [1, 2, 3], GREEDY)

    asyncio.run(fail())


def test_an_engine_that_cannot_begin_says_why(engine, end) -> None:
    engine.close()

    async def ask() -> None:
        async with asking(engine, end) as remote:
            with pytest.raises(EngineFailed, match="the engine has stopped"):
                await complete(remote, [1, 2, 3], GREEDY)
            with pytest.raises(UserError, match="the prompt is empty"):
                await complete(remote, [], GREEDY)

    asyncio.run(ask())
