"""What ``hydra.main`` serves: sweeps, and questions about the configuration."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from easyllm.cli.arguments import Arguments, Override
from easyllm.cli.library import ROOT, absent_option
from easyllm.cli.report import refuse
from easyllm.spec.problems import SpecError

INTERRUPTED = 130
QUIET = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
)


def inspect(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """Answer ``--cfg``, ``--info``, ``--help`` and their like."""
    _hydra([*arguments.hydra_flags, *(o.text for o in overrides)], arguments, lambda config: None)
    return 0


def sweep(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """One run for each combination of the values given, each as if typed by itself.

    A point that fails or is refused does not keep the others from running. Returns 0 when
    all were done, 1 otherwise.
    """
    absent = _absent_choices(arguments, overrides)
    words = [_without(o, absent) for o in overrides]
    failed = [f"{group}={value}" for group, value in absent]
    for group, value in absent:
        refuse([absent_option(arguments.library, group, value)], lambda key: "command line")
    number = 0

    def point(config: Any) -> None:
        nonlocal number
        from hydra.core.hydra_config import HydraConfig

        number += 1
        own = list(HydraConfig.get().overrides.task)
        shown = " ".join(word.lstrip("+") if "=" in word else word for word in own)
        print(f"\neasyllm | point {number}: {shown}", file=sys.stderr, flush=True)
        status = _run_point(arguments, own)
        if status == INTERRUPTED:
            raise KeyboardInterrupt
        if status:
            failed.append(shown)

    folder = f"runs/sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    flags = ["--multirun", f"hydra.sweep.dir={folder}", *QUIET]
    if not any(word is None for word in words):
        _hydra([*flags, *(word for word in words if word)], arguments, point)
    done = number - (len(failed) - len(absent))
    say = f"\neasyllm | sweep: {done} of {number + len(absent)} points done"
    print(say + "".join(f"\n  not done: {point}" for point in failed), file=sys.stderr)
    return 1 if failed else 0


def _run_point(arguments: Arguments, words: list[str]) -> int:
    command = [sys.executable, "-m", "easyllm", *words]
    if arguments.config_dir is not None:
        command += ["--config-dir", str(arguments.config_dir)]
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the point has had it too, and ends its ranks
            continue


def _absent_choices(arguments: Arguments, overrides: Sequence[Override]) -> list[tuple[str, str]]:
    """Options of a swept group that no file has: Hydra would refuse the whole sweep for one."""
    library = arguments.library
    return [
        (o.key, choice)
        for o in overrides
        if library.is_group(o.key)
        for choice in o.choices
        if not library.file(f"{o.key}/{choice}").is_file()
    ]


def _without(override: Override, absent: list[tuple[str, str]]) -> str | None:
    """The override without absent choices; None when no choice is left."""
    gone = [value for group, value in absent if group == override.key]
    if not gone:
        return override.text
    left = [choice for choice in override.choices if choice not in gone]
    return f"{override.text.partition('=')[0]}={','.join(left)}" if left else None


def _hydra(words: list[str], arguments: Arguments, task: Any) -> None:
    import hydra

    sys.argv = [sys.argv[0], *words]
    if arguments.config_dir is not None:
        sys.argv += ["--config-dir", str(arguments.config_dir)]
    decorate = hydra.main(
        config_path=str(arguments.library.own), config_name=ROOT, version_base="1.3"
    )
    with contextlib.suppress(SystemExit):
        decorate(task)()


def checked(arguments: Arguments, overrides: Sequence[Override]) -> None:
    """Refuse a wrong spec before Hydra prints it. Raises SpecError."""
    from easyllm.cli.compose import compose

    if not arguments.sweep and any(f in ("--cfg", "-c") for f in arguments.hydra_flags):
        from easyllm.runfile import read_config

        _, found = read_config(compose(list(overrides), arguments.library))
        if found:
            raise SpecError(found)
