"""The agent on a machine that does not own the run: ``python -m easyllm.launchers.remote.agent``.

It connects to the machine that owns the run, starts ranks on request, sends their output, reports
and statuses back, and passes signals on to them. When that machine is lost, the ranks here end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from easyllm import __version__
from easyllm.errors import STOPPED, UserError
from easyllm.files import read_json
from easyllm.launchers import reports
from easyllm.launchers.ranks import POLL, Position, Process
from easyllm.launchers.remote.handshake import introduce
from easyllm.launchers.remote.protocol import Channel, routed
from easyllm.launchers.stopping import stop_signals
from easyllm.signals import Asked, stoppable

TOKEN = "EASYLLM_TOKEN"
"""Variable with the run's token; if it is not set, the token is read from standard input."""

ANSWER = 60.0
"""Seconds for the owner's first answer."""

GONE = 1
"""Exit status of an agent that has lost its owner."""


def serve(host: str, port: int, token: str, index: int, patience: float) -> int:
    """Serve the run that is owned at ``host:port`` until it ends; returns its exit status.

    ``index`` is this machine's number among the agents, from 0; ``token`` is the run's. Raises
    UserError if no process answers there within ``patience`` seconds, or if the one that answers
    does not know the token or refuses this machine.
    """
    channel = _connected(host, port, patience)
    channel.connection.settimeout(ANSWER)  # the owner admits one machine after the other
    introduce(channel, token, {"node": index, "version": __version__}, f"{host}:{port}")
    channel.live()
    with stop_signals() as asked:
        agent = _Agent(channel, asked)
        try:
            return agent.run()
        finally:
            channel.close()


def _connected(host: str, port: int, patience: float) -> Channel:
    deadline = time.monotonic() + patience
    while True:
        try:
            return Channel(socket.create_connection((host, port), timeout=5))
        except (OSError, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"no process answers at {host}:{port} ({error}); is the run started on that "
                    "machine, and may this one connect to it?"
                ) from None
        time.sleep(0.5)


class _Agent:
    def __init__(self, channel: Channel, asked: threading.Event):
        self.channel, self.asked = channel, asked
        self.inbox: list[dict[str, Any] | None] = []
        self.ranks: dict[int, Process] = {}
        self.reported: set[int] = set()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            message = self.channel.receive()
            self.inbox.append(message)
            if message is None:
                return

    def run(self) -> int:
        with tempfile.TemporaryDirectory(prefix="easyllm-") as made:
            self.folder = Path(made)
            try:
                while True:
                    if self.asked.is_set():
                        self.asked.clear()
                        self.channel.send({"asked": True})
                    while self.inbox:
                        message = self.inbox.pop(0)
                        if message is None:
                            return GONE
                        if "refused" in message:
                            raise UserError(str(message["refused"]))
                        if "bye" in message:
                            return int(message["bye"])
                        self._heed(message)
                    self._tell()
                    time.sleep(POLL)
            finally:
                for rank in self.ranks.values():
                    rank.close()

    def _heed(self, message: dict[str, Any]) -> None:
        if "start" in message:
            self._start(**message["start"])
        elif rank := self.ranks.get(message["rank"]):
            if message["signal"] == signal.SIGKILL:
                rank.close()
            else:
                rank.send(message["signal"])

    def _start(
        self, command: list[str], files: dict[str, str], env: dict[str, str], folder: str,
        positions: list[dict[str, Any]],
    ) -> None:  # fmt: skip
        self.ranks.clear()
        self.reported.clear()
        reports.clear(self.folder)
        words = {}
        for number, (name, text) in enumerate(files.items()):
            copy = self.folder / str(number) / Path(name).name
            copy.parent.mkdir(exist_ok=True)
            copy.write_text(text, "utf-8")
            words[name] = str(copy)
        with contextlib.suppress(OSError):
            os.chdir(folder)
        base = routed({**os.environ, **env}, self.channel.address)
        base[reports.FOLDER] = str(self.folder)
        for position in (Position(**plain) for plain in positions):
            self.ranks[position.rank] = Process(
                position.rank,
                [words.get(word, word) for word in command],
                position.environment(base),
                self._passer(position.rank),
                position.node,
            )

    def _passer(self, rank: int) -> Callable[[bytes], None]:
        return lambda chunk: self.channel.send({"rank": rank, "output": chunk.decode("latin-1")})

    def _tell(self) -> None:
        """Send the reports of ranks that have ended, and then their status."""
        for index, rank in self.ranks.items():
            if index in self.reported or (status := rank.look()) is None:
                continue
            self.reported.add(index)
            rank.close()  # so that the rest of its output is sent first
            left = reports.file(self.folder, index)
            if left.exists():
                self.channel.send({"rank": index, "report": read_json(left)})
            self.channel.send({"rank": index, "ended": status})


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="easyllm.launchers.remote.agent")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("index", type=int, help="number among the agents, from 0", nargs="?")
    parser.add_argument("--patience", type=float, default=60)
    given = parser.parse_args(words)
    # not on the command line, which every user of the machine can see
    token = os.environ.pop(TOKEN, None) or sys.stdin.readline().strip()
    index = given.index if given.index is not None else int(os.environ["SLURM_PROCID"])
    try:
        with stoppable():
            return serve(given.host, given.port, token, index, given.patience)
    except Asked:
        return STOPPED
    except UserError as error:
        print(f"easyllm: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
