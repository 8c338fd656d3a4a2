"""Machines of a run take nothing from who does not know its secret."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from easyllm.errors import UserError
from easyllm.launchers.remote.handshake import SECRET, admit, introduce, with_secret
from easyllm.launchers.remote.protocol import Channel
from tests.support import PATIENCE

FACTS = {"node": 0, "version": "1"}


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    first, second = map(Channel, socket.socketpair())
    for channel in (first, second):
        channel.connection.settimeout(5)
    yield first, second
    first.close()
    second.close()


def meanwhile(work: Callable[[], Any]) -> Callable[[], Any]:
    """Do ``work`` in a thread; the result gives what it returned or raised."""
    found: list[Any] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()

    def result() -> Any:
        thread.join(PATIENCE)
        return found[0]

    return result


def framed(message: dict[str, Any]) -> bytes:
    body = json.dumps(message).encode()
    return struct.pack("!I", len(body)) + body


def known(owner: Channel, agent: Channel) -> None:
    admitted = meanwhile(lambda: admit(owner, "secret"))
    introduce(agent, "secret", FACTS, "here")
    assert {**admitted(), "nonce": ""} == {**FACTS, "nonce": ""}


def test_who_knows_the_secret_is_heard(ends: tuple[Channel, Channel]) -> None:
    owner, agent = ends
    known(owner, agent)
    for number in range(3):
        owner.send({"start": number})
        agent.send({"ended": number})
        assert agent.receive() == {"start": number}
        assert owner.receive() == {"ended": number}


def test_another_secret_is_refused_by_both(ends: tuple[Channel, Channel]) -> None:
    owner, agent = ends

    def asking() -> None:
        try:
            introduce(agent, "secret", FACTS, "10.0.0.1:29400")
        finally:
            agent.close()

    asked = meanwhile(asking)
    assert admit(owner, "another") is None
    error = asked()
    assert isinstance(error, UserError)
    assert "the process at 10.0.0.1:29400 does not know the secret of this run" in str(error)


@pytest.mark.parametrize(
    "answer", [{"start": {"command": ["id"]}}, {"nonce": "0", "proof": "0"}, {"bye": 0}]
)
def test_an_agent_obeys_no_stranger(ends: tuple[Channel, Channel], answer: dict[str, Any]) -> None:
    stranger, agent = ends
    stranger.connection.sendall(framed(answer))
    with pytest.raises(UserError, match="does not know the secret"):
        introduce(agent, "secret", FACTS, "there")


@pytest.mark.parametrize("how", ["no hash", "another's", "twice", "its own"])
def test_who_breaks_in_later_is_not_heard(ends: tuple[Channel, Channel], how: str) -> None:
    owner, agent = ends
    known(owner, agent)
    body = json.dumps({"start": 1}).encode()
    if how == "no hash":
        owner.connection.sendall(framed({"start": 1}))
    elif how == "another's":
        owner.connection.sendall(struct.pack("!I", len(body) + 32) + bytes(32) + body)
    elif how == "twice":
        owner.send({"start": 1})
        owner.sent = 0
        owner.send({"start": 1})
        assert agent.receive() == {"start": 1}
    else:  # what the agent says, sent back to it
        owner.own = "agent"
        owner.send({"start": 1})
    assert agent.receive() is None


def test_the_users_secret_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    assert with_secret("job") == "job"
    monkeypatch.setenv(SECRET, "mine")
    assert with_secret("job") != "job"
