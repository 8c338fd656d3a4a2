"""Launching on several machines: one machine owns the run, and each other machine has an agent.

The owner listens, the agents (``easyllm.launchers.remote.agent``) connect to it; each launch is
sent to them, and their ranks are watched like its own.
"""

from __future__ import annotations

import abc
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from easyllm import __version__
from easyllm.errors import STOPPED, UserError
from easyllm.launchers import reports
from easyllm.launchers.ranks import (
    LOST,
    POLL,
    Position,
    Process,
    Rank,
    Tee,
    free_port,
    fresh,
    watch,
)
from easyllm.launchers.remote.environment import passed
from easyllm.launchers.remote.handshake import admit
from easyllm.launchers.remote.protocol import Channel, routed
from easyllm.launchers.reports import Report
from easyllm.signals import Asked
from easyllm.spec.roles import Launcher
from easyllm.spec.types import PositiveFloat

HELLO = 5.0
"""Seconds that a new connection has for each answer until it is admitted."""


class Agent:
    """Another machine, through the agent on it."""

    def __init__(self, name: str, channel: Channel):
        self.name, self.channel = name, channel
        self.ranks: dict[int, Remote] = {}
        self.logs = Path()
        self.lost = False
        channel.live()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, positions: Sequence[Position], logs: Path, parts: Mapping[str, Any]) -> None:
        self.logs = logs
        self.ranks = {
            position.rank: Remote(self, position.rank, logs / f"rank-{position.rank}.log")
            for position in positions
        }
        if self.lost:
            self._lose()
        plain = [asdict(position) for position in positions]
        self.channel.send({"start": {**parts, "positions": plain}})

    def _listen(self) -> None:
        while (message := self.channel.receive()) is not None:
            if "asked" in message:
                # a request to one machine to stop is a request to the run
                os.kill(os.getpid(), signal.SIGTERM)
            elif rank := self.ranks.get(message["rank"]):
                if "output" in message:
                    rank.log(message["output"].encode("latin-1"))
                elif "report" in message:
                    reports.leave(self.logs, Report(**message["report"]))
                else:
                    rank.status = message["ended"]
        self.lost = True
        self._lose()

    def _lose(self) -> None:
        for rank in self.ranks.values():
            if rank.status is None:
                message = "is out of reach: its machine or the network has gone down"
                reports.leave(self.logs, Report(rank.index, message, "killed", node=self.name))
                rank.status = LOST


class Remote(Rank):
    """A rank of another machine."""

    def __init__(self, agent: Agent, index: int, log: Path):
        self.agent, self.index, self.node = agent, index, agent.name
        self.status: int | None = None
        self.log = Tee(log, shown=False)

    def look(self) -> int | None:
        return self.status

    def send(self, number: int) -> None:
        if self.status is None:
            self.agent.channel.send({"rank": self.index, "signal": number})

    def close(self) -> None:
        self.send(signal.SIGKILL)
        deadline = time.monotonic() + 5
        while self.status is None and time.monotonic() < deadline:
            time.sleep(POLL)


class Machines:
    """All machines of a run, seen from the one that owns it."""

    def __init__(
        self, name: str, address: str, agents: Sequence[Agent], env: Mapping[str, str],
        grace: float,
    ):  # fmt: skip
        self.name, self.address, self.agents = name, address, agents
        self.env, self.grace = env, grace

    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int,
        files: Sequence[Path] = (),
    ) -> int:
        """As ``Launcher.launch``, on all of them."""
        fresh(logs)
        own = self.address
        here, port = ranks // nodes, free_port(own)
        names = [self.name, *(agent.name for agent in self.agents)]
        positions = [
            Position(rank, ranks, rank % here, here, own, port, names[rank // here])
            for rank in range(ranks)
        ]
        parts = {
            "command": list(command),
            "files": {str(file): file.read_text("utf-8") for file in files},
            "env": {**env, **self.env},
            "folder": str(Path.cwd()),
        }

        def starting() -> Iterator[Rank]:
            for number, agent in enumerate(self.agents, 1):
                agent.start(positions[number * here : (number + 1) * here], logs, parts)
                yield from agent.ranks.values()
            base = routed({**os.environ, **env, **self.env}, own)
            for position in positions[:here]:
                log = logs / f"rank-{position.rank}.log"
                yield Process(
                    position.rank, command, position.environment(base),
                    log if position.rank else Tee(log, shown=True), self.name,
                )  # fmt: skip

        return watch(starting(), logs, self.grace)

    def close(self, status: int) -> None:
        """Send the agents the run's exit status, so that they end with the same."""
        for agent in self.agents:
            agent.channel.send({"bye": status})


class AgentRendezvous:
    """A port on which the owner waits for the agents of a run."""

    def __init__(self, address: str, port: int, token: str):
        self.token = token
        try:
            self.listener = socket.create_server((address, port), backlog=128)
        except OSError as error:
            raise UserError(f"cannot listen at {address}:{port}: {error.strerror}") from None
        self.listener.settimeout(0.2)
        self.address, self.port = self.listener.getsockname()[:2]

    def agents(
        self, names: Sequence[str | None], patience: float, look: Callable[[], None] = lambda: None
    ) -> list[Agent]:
        """The agents of all machines, by number; a name that is None is the machine's address.

        ``look`` is called now and then and may raise. Raises UserError where some have not
        connected within ``patience`` seconds.
        """
        found: dict[int, Agent] = {}
        deadline = time.monotonic() + patience
        try:
            while len(found) < len(names):
                look()
                if time.monotonic() > deadline:
                    absent = ", ".join(
                        name or f"number {index + 1}"
                        for index, name in enumerate(names) if index not in found
                    )  # fmt: skip
                    raise UserError(
                        f"after {patience:g} s {len(names) - len(found)} of {len(names)} other "
                        f"machines have not connected to {self.address}:{self.port}: {absent}"
                    )
                with contextlib.suppress(TimeoutError):
                    connection, (address, *_) = self.listener.accept()
                    channel = Channel(connection)
                    index = self._admitted(channel, len(names), found)
                    if index is None:
                        channel.close()
                    else:
                        found[index] = Agent(names[index] or address, channel)
        except BaseException as error:
            for agent in found.values():
                if isinstance(error, Asked):
                    agent.channel.send({"bye": STOPPED})
                agent.channel.close()
            raise
        finally:
            self.listener.close()
        return [found[index] for index in range(len(names))]

    def _admitted(self, channel: Channel, count: int, found: Mapping[int, Agent]) -> int | None:
        """The number of the machine that has connected; None for one that is not part of the
        run."""
        channel.connection.settimeout(HELLO)
        facts = admit(channel, self.token)
        if facts is None:
            return None  # it gets no messages
        index, version = facts.get("node"), facts.get("version")
        if version != __version__:
            refusal = f"this machine has easyllm {version}, the run {__version__}"
        elif not isinstance(index, int) or not 0 <= index < count:
            refusal = f"the run is on {count + 1} machines, but this one has number {index}"
        elif index in found:
            refusal = f"another machine is number {index + 1} already"
        else:
            return index
        channel.send({"refused": refusal})
        return None


@dataclass(frozen=True, kw_only=True)
class AgentLauncher(Launcher):
    """Base of launchers that start the agents themselves, from the machine that owns the run."""

    join_timeout_s: PositiveFloat = 120.0
    """Seconds that the other machines have to start and connect to this one."""

    def launch(
        self,
        command: Sequence[str],
        ranks: int,
        logs: Path,
        env: Mapping[str, str],
        *,
        nodes: int = 1,
        files: Sequence[Path] = (),
    ) -> int:
        logs.mkdir(parents=True, exist_ok=True)
        for old in logs.glob("node-*.log"):
            old.unlink()
        names = self.names(nodes)
        token = secrets.token_hex(16)
        gathering = AgentRendezvous(own_address(self.address(names[0])), 0, token)
        with contextlib.ExitStack() as stack:
            started = self.start(names[1:], gathering, env, logs)
            for process in started:
                stack.callback(_ended, process)
            look = lambda: self.look(started, names[1:], logs)  # noqa: E731
            agents = gathering.agents(names[1:], self.join_timeout_s, look)
            env_there = passed(self, needed=True)
            machines = Machines(names[0], gathering.address, agents, env_there, self.grace)
            status = 1
            try:
                status = machines.launch(command, ranks, logs, env, nodes=nodes, files=files)
            finally:
                machines.close(status)
            return status

    @abc.abstractmethod
    def names(self, nodes: int) -> list[str]:
        """The names of the machines, this one's first. Raises UserError."""

    def address(self, name: str) -> str:
        """A name or address by which machines reach each other."""
        return name

    @abc.abstractmethod
    def start(
        self, names: Sequence[str], gathering: AgentRendezvous, env: Mapping[str, str], logs: Path
    ) -> list[subprocess.Popen[bytes]]:
        """Start an agent on each of the other machines; their output goes to ``node-<n>.log``."""

    def look(
        self, started: Sequence[subprocess.Popen[bytes]], names: Sequence[str], logs: Path
    ) -> None:
        """Raises UserError if an agent has ended before it connected, or Asked if it was asked to
        stop."""
        for number, process in enumerate(started, 1):
            if process.poll() == STOPPED:
                raise Asked
            if process.poll():
                log = logs / f"node-{number}.log"
                said = log.read_text("utf-8", "replace").strip().splitlines()[-3:]
                where = names[number - 1] if len(started) == len(names) else ", ".join(names)
                command = Path(str(process.args[0])).name  # type: ignore[index]
                raise UserError(
                    f"starting ranks on {where}: {command} ended with status {process.returncode}"
                    + "".join(f"\n  {line}" for line in said)
                )


def own_address(name: str) -> str:
    """The address that ``name`` has on this machine. Raises UserError for another machine's."""
    try:
        found = {info[4][0] for info in socket.getaddrinfo(name, None, socket.AF_INET)}
    except (OSError, UnicodeError) as error:
        raise UserError(f"{name}, the first machine of the run, is not known: {error}") from None
    on_purpose = name == "localhost" or name.startswith("127.")
    for address in map(str, sorted(found)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind((address, 0))
            if on_purpose or not address.startswith("127."):
                return address
    raise UserError(
        f"{name}, the first machine of the run, is not this one or has no address that others can "
        "reach: the first machine owns the run. Start it there, or put this machine's name "
        "or address first"
    )


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process that started an agent, which ends with the agent."""
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
