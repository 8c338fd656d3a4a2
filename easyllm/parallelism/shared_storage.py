"""The files that all machines of a run must share, checked before the first step."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from easyllm.errors import UserError
from easyllm.files import atomic_write, fingerprint
from easyllm.launchers import reports
from easyllm.parallelism import world
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

PATIENCE = 10.0
"""Seconds within which every machine must see a new file; network file systems cache listings."""


def check(run: RunSpec, inputs: Sequence[Path]) -> None:
    """Check that every machine sees rank 0's ``run_dir`` and the files that training reads.

    Every rank must call it. Raises UserError on all of them, naming the machines and what they
    lack. The file that was written for the check is removed.
    """
    root = RunPaths(run).root
    token = world.broadcast_object(root / f".seen-{secrets.token_hex(8)}")
    wanted = world.broadcast_object({str(path): _content(path) for path in inputs})
    if world.is_main():
        with atomic_write(token) as temporary:
            temporary.write_text("removed when every machine has seen it", "utf-8")
    world.wait_for_all()
    try:
        missing = [] if _seen(token) else ["run_dir"]
        for path, content in wanted.items():
            if _content(Path(path)) != content:
                missing.append(path)
        found: list[tuple[str, list[str]]] = world.all_gather_object((_machine(), missing))
    finally:
        if world.is_main():
            token.unlink(missing_ok=True)
    by_machine = {machine: paths for machine, paths in found if paths}
    if without := [machine for machine, paths in by_machine.items() if "run_dir" in paths]:
        raise UserError(
            f"run_dir={root} of {found[0][0]} is not there on {', '.join(without)}: each rank "
            "writes its part of a checkpoint there, and parts are not gathered from other disks. "
            "Give a run_dir on a disk that all machines share"
        )
    if by_machine:
        named = "; ".join(f"{machine}: {', '.join(paths)}" for machine, paths in by_machine.items())
        raise UserError(
            f"training reads files that are not there, or differ from those of {found[0][0]}, on "
            f"{named}. Give data.dir and model.path on a disk that all machines share, or copy them"
        )


def _content(path: Path) -> str:
    """A value that identifies a file's content on any disk, without its times."""
    identity = fingerprint(path)
    return identity if identity.startswith("sha256:") else identity.partition(":")[0]


def _seen(token: Path) -> bool:
    deadline = time.monotonic() + PATIENCE
    while not token.exists() and time.monotonic() < deadline:
        if token.parent.is_dir():
            os.listdir(token.parent)  # noqa: PTH208  (renews what a network file system knows)
        time.sleep(0.2)
    return token.exists()


def _machine() -> str:
    return os.environ.get(reports.NODE) or f"{socket.gethostname()} (rank {dist.get_rank()})"
