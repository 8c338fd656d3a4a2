"""An engine at the other end of a pipe answers as it does in place."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from easyllm.errors import UserError
from easyllm.inference.apart import Host, RemoteEngine
from easyllm.inference.engines import EngineFailed
from easyllm.inference.hf import HFEngine
from easyllm.spec.inference import SamplingSpec
from tests.inference.small import save_model
from tests.inference.test_hf import GREEDY, WARM, complete, encode, load

LONG = SamplingSpec(max_tokens=200, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def engine(folder: Path) -> Iterator[HFEngine]:
    engine = load(folder)
    yield engine
    engine.close()


@pytest.fixture
def ends(engine: HFEngine) -> Iterator[tuple[Connection, Connection]]:
    """The engine's, and the one to ask at."""
    ours, theirs = multiprocessing.Pipe()
    host = Host(engine, ours)
    listening = threading.Thread(target=host.listen)
    listening.start()
    yield ours, theirs
    theirs.close()
    listening.join(10)
    assert not listening.is_alive()
    ours.close()


@asynccontextmanager
async def asking(engine: HFEngine, pipe: Connection) -> AsyncIterator[RemoteEngine]:
    remote = RemoteEngine(pipe, engine.tokenizer, engine.max_positions)
    loop = asyncio.get_running_loop()

    def heard() -> None:
        kind, what = pipe.recv()
        assert kind == "grown"
        remote.take(what)

    loop.add_reader(pipe.fileno(), heard)
    try:
        yield remote
    finally:
        loop.remove_reader(pipe.fileno())


def test_the_answers_are_the_same(engine, ends) -> None:
    prompts = encode(engine)
    samplings = [GREEDY, WARM, SamplingSpec(max_tokens=12, logprobs=2, seed=3, temperature=1.0)]

    async def both() -> None:
        async with asking(engine, ends[1]) as remote:
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


def test_one_who_leaves_ends_the_generation(engine, ends) -> None:
    async def leave() -> None:
        async with (
            asking(engine, ends[1]) as remote,
            aclosing(remote.generate([1, 2, 3], LONG)) as steps,
        ):
            assert (await anext(steps)).tokens
            assert len(engine._answers) == 1
        deadline = time.monotonic() + 1
        while engine._answers:  # the message is on its way
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(leave())


def test_what_is_under_way_ends_when_the_engine_fails(engine, ends) -> None:
    async def fail() -> None:
        async with asking(engine, ends[1]) as remote:
            asyncio.get_running_loop().call_later(0.05, remote.fail)
            with pytest.raises(EngineFailed, match="has stopped"):
                await complete(remote, [1, 2, 3], LONG)
            with pytest.raises(EngineFailed, match="has stopped"):
                await complete(remote, [1, 2, 3], GREEDY)

    asyncio.run(fail())


def test_an_engine_that_cannot_begin_says_why(engine, ends) -> None:
    engine.close()

    async def ask() -> None:
        async with asking(engine, ends[1]) as remote:
            with pytest.raises(EngineFailed, match="the engine has stopped"):
                await complete(remote, [1, 2, 3], GREEDY)
            with pytest.raises(UserError, match="the prompt is empty"):
                await complete(remote, [], GREEDY)

    asyncio.run(ask())


def test_with_nobody_at_the_other_end_it_has_failed() -> None:
    nobody, pipe = multiprocessing.Pipe()
    nobody.close()

    async def ask() -> None:
        remote = RemoteEngine(pipe, None, 256)
        with pytest.raises(EngineFailed, match="has stopped"):
            await complete(remote, [1, 2, 3], GREEDY)
        assert remote.failed

    asyncio.run(ask())
