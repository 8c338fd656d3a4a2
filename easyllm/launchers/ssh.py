"""Ranks on the machines of a hostfile, reached by ssh."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from easyllm.errors import UserError
from easyllm.launchers.multi_node import AgentLauncher, AgentRendezvous, own_address
from easyllm.launchers.remote.agent import TOKEN
from easyllm.spec.problems import Problem
from easyllm.spec.run import RunSpec
from easyllm.spec.types import Place

HOSTFILE = "/job/hostfile"
"""The path at which DeepSpeed looks for a hostfile."""


@dataclass(frozen=True, kw_only=True)
class Ssh(AgentLauncher):
    """Starts ranks on this machine and, by ssh, on the others of a DeepSpeed hostfile.

    A line of the hostfile is ``host slots=N``. The first host is the machine on which the command
    is given, by a name or address by which the others reach it. They must let this user log in
    without a password, and have the same Python environment at ``python``.
    """

    hostfile: Place = HOSTFILE
    """A file with a line ``host slots=N`` for each machine."""
    hosts: tuple[str, ...] = ()
    """The hosts themselves, instead of a hostfile."""
    by: Literal["ssh", "pdsh"] = "ssh"
    """``ssh`` uses one process for each machine; ``pdsh`` uses one for all, which runs ssh."""
    ssh: tuple[str, ...] = ("ssh", "-o", "BatchMode=yes")
    """The ssh command and its options; pdsh takes the options."""
    python: str | None = None
    """The Python interpreter on the other machines; null takes the same path as on this one."""

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        nodes = run.hardware.nodes
        try:
            machines = self.machines()
        except UserError as error:
            yield Problem(
                f"{key}.hostfile", self.hostfile, str(error),
                f"give {key}.hostfile=<file with a line 'host slots=N' for each machine>",
            )  # fmt: skip
            return
        where = f"{key}.hosts" if self.hosts else f"{key}.hostfile"
        if len(machines) < nodes:
            yield Problem(
                "hardware.nodes", nodes, f"{where} names {len(machines)} machines",
                f"give hardware.nodes={len(machines)}, or name more", also=(where,),
            )  # fmt: skip
        devices = run.hardware.devices_per_node
        few = [name for name, slots in list(machines.items())[:nodes] if slots and slots < devices]
        if few:
            yield Problem(
                "hardware.devices_per_node", devices,
                f"{where} gives {', '.join(few)} {machines[few[0]]} slots",
                f"give hardware.devices_per_node={machines[few[0]]}", also=(where,),
            )  # fmt: skip
        first = next(iter(machines))
        try:
            own_address(self.address(first))
        except UserError as error:
            what, remedy = error.parts
            yield Problem(where, first, what, remedy or f"fix {where}")
        for program in {self.ssh[0] if self.ssh else "ssh", self.by if self.by == "pdsh" else ""}:
            if program and shutil.which(program) is None:
                yield Problem(
                    f"{key}.ssh", list(self.ssh), f"{program} is not installed here",
                    "install it, or give the command that reaches the other machines",
                )  # fmt: skip

    def machines(self) -> dict[str, int | None]:
        """Slots by host, None where the file gives none. Raises UserError."""
        if self.hosts:
            return dict.fromkeys(self.hosts)
        try:
            lines = Path(self.hostfile).read_text("utf-8").splitlines()
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}") from None
        found: dict[str, int | None] = {}
        for number, line in enumerate(lines, 1):
            words = line.partition("#")[0].split()
            if not words:
                continue
            host, *rest = words
            slots = [word.partition("=") for word in rest]
            if any(name != "slots" or not count.isdecimal() for name, _, count in slots):
                raise UserError(f"line {number} is {line.strip()!r}, not 'host slots=N'")
            if host in found:
                raise UserError(f"line {number} names {host} again")
            found[host] = int(slots[0][2]) if slots else None
        if not found:
            raise UserError("names no machine")
        return found

    def names(self, nodes: int) -> list[str]:
        return list(self.machines())[:nodes]

    def address(self, name: str) -> str:
        return name.rpartition("@")[2]

    def start(
        self, names: Sequence[str], gathering: AgentRendezvous, env: Mapping[str, str], logs: Path
    ) -> list[subprocess.Popen[bytes]]:
        python = self.python or sys.executable
        words = ["env", *(f"{name}={value}" for name, value in env.items()), python]
        words += ["-m", "easyllm.launchers.remote.agent", gathering.address, str(gathering.port)]
        if self.by == "pdsh":
            # pdsh does not pass standard input on; the token admits one agent on each machine, once
            words.insert(1, f"{TOKEN}={gathering.token}")
            remote = f"{shlex.join(words)} %n"
            pdsh = ["pdsh", "-S", "-R", "ssh", "-f", str(len(names)), "-w", ",".join(names), remote]
            own = {"PDSH_SSH_ARGS_APPEND": shlex.join(self.ssh[1:])}
            return [_started(pdsh, own, gathering.token, logs / "node-1.log")]
        return [
            _started(
                [*self.ssh, name, shlex.join([*words, str(index)])],
                {}, gathering.token, logs / f"node-{index + 1}.log",
            )
            for index, name in enumerate(names)
        ]  # fmt: skip


def _started(
    command: Sequence[str], env: Mapping[str, str], token: str, log: Path
) -> subprocess.Popen[bytes]:
    """A process that starts agents, which read the token from its standard input."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, env={**os.environ, **env}, stdin=subprocess.PIPE, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    assert process.stdin is not None
    try:
        process.stdin.write(token.encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:  # it has ended already, which its status shows
        pass
    return process
