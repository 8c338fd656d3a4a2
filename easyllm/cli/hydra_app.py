"""What ``hydra.main`` serves: sweeps, and questions about the configuration."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from easyllm.cli.arguments import Arguments, Override
from easyllm.cli.library import ROOT, absent_option
from easyllm.cli.report import refuse
from easyllm.signals import Asked
from easyllm.spec.problems import Problem, SpecError

INTERRUPTED = 130
QUIET = (
    "hydra/job_logging=disabled",
    "hydra/hydra_logging=disabled",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
    "hydra.sweep.subdir=.",
)


def inspect(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """Answer ``--cfg``, ``--info``, ``--help`` and their like."""
    words = [o.text for o in overrides]
    return _hydra(arguments.hydra_flags, words, arguments, lambda config: None)


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
    number, status = 0, 0

    def point(config: Any) -> None:
        nonlocal number
        from hydra.core.hydra_config import HydraConfig

        number += 1
        own = list(HydraConfig.get().overrides.task)
        shown = " ".join(word.lstrip("+") if "=" in word else word for word in own)
        print(f"\neasyllm | point {number}: {shown}", file=sys.stderr, flush=True)
        ended = _run_point(arguments, own)
        if ended == INTERRUPTED:
            raise KeyboardInterrupt
        if ended:
            failed.append(shown)

    folder = f"runs/sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    quiet = [f"hydra.sweep.dir={folder}", *QUIET]
    if not any(word is None for word in words):
        status = _hydra(["--multirun"], [*quiet, *filter(None, words)], arguments, point)
    done = number - (len(failed) - len(absent))
    say = f"\neasyllm | sweep: {done} of {number + len(absent)} points done"
    print(say + "".join(f"\n  not done: {point}" for point in failed), file=sys.stderr)
    return 1 if failed or status else 0


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
        except Asked:
            process.send_signal(signal.SIGTERM)
            process.wait()
            raise


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


def _hydra(flags: list[str], words: list[str], arguments: Arguments, task: Any) -> int:
    import hydra

    names = ["hydra.job.name=easyllm", "hydra.help.app_name='python -m easyllm'"]
    folder = [] if arguments.config_dir is None else ["--config-dir", str(arguments.config_dir)]
    # "--": else argparse takes the first override for the value of a flag such as --info
    sys.argv = [sys.argv[0], *folder, *flags, "--", *names, *words]
    decorate = hydra.main(
        config_path=str(arguments.library.own), config_name=ROOT, version_base="1.3"
    )
    try:
        decorate(task)()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    return 0


def checked(arguments: Arguments, overrides: Sequence[Override]) -> None:
    """Refuse a wrong spec before Hydra prints it. Raises SpecError."""
    from easyllm.cli.compose import compose

    if arguments.sweep:
        flag = arguments.hydra_flags[0]
        raise SpecError([Problem("-m", None, f"cannot go with {flag}", "leave one of them out")])
    if any(f in ("--cfg", "-c") for f in arguments.hydra_flags):
        from easyllm.runfile import read_config

        _, found = read_config(compose(list(overrides), arguments.library))
        if found:
            raise SpecError(found)
