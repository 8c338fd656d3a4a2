"""Ranks as processes of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from easyllm.launchers.ranks import Position, Process, Rank, Tee, free_port, fresh, watch
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Launcher
from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class Local(Launcher):
    """Starts every rank on this machine, each in its own session.

    SIGTERM and SIGUSR1 to this process are passed on to the ranks as SIGTERM; they save and end
    with status 75. A first Ctrl-C does the same, and then KeyboardInterrupt is raised. A second
    Ctrl-C ends the ranks at once.
    """

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if run.hardware.nodes > 1 and "train" in run.stages:
            yield Problem(
                "hardware.nodes",
                run.hardware.nodes,
                f"{key} starts ranks on this machine only",
                f"name a launcher that reaches all nodes in {key}._target_, or choose "
                "hardware of one node; stages=[] checks the spec for the nodes it names",
                also=(key,),
            )

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
        fresh(logs)
        port = free_port()

        def starting() -> Iterator[Rank]:
            for rank in range(ranks):
                own = Position(rank, ranks, rank, ranks, "127.0.0.1", port).environment(
                    {**os.environ, **env, **self.env}
                )
                log = logs / f"rank-{rank}.log"
                yield Process(rank, command, own, log if rank else Tee(log, shown=True))

        return watch(starting(), logs, self.grace)
