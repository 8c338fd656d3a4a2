"""Sweeps, and questions about the configuration, which ``hydra.main`` answers."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from easyllm.cli.command_line.flags import CFG, PACKAGE, SHELL, TRUST, Arguments
from easyllm.cli.command_line.overlay import has
from easyllm.cli.command_line.overrides import Override
from easyllm.cli.library import ROOT, absent_option
from easyllm.cli.origins import Origin
from easyllm.cli.report import refuse
from easyllm.printable import printable
from easyllm.signals import Asked
from easyllm.spec.problems import Problem, SpecError, near
from easyllm.spec.schema import flatten

INTERRUPTED = 130
JOB = ("--cfg job", "--cfg=job", "-c job")


def inspect(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """Answer ``--cfg``, ``--info``, ``--help`` and their like."""
    asked = [flag for flag in arguments.hydra_flags if SHELL.fullmatch(flag)]
    flags = [flag for flag in arguments.hydra_flags if flag not in asked]
    if " ".join(flags) in JOB:
        return _print_job(overrides, arguments)
    words = [o.text for o in overrides if not (asked or "--hydra-help" in flags)]
    return _hydra(flags, asked or words, arguments, lambda config: None)


def _print_job(overrides: Sequence[Override], arguments: Arguments) -> int:
    """The whole composed configuration, as Hydra prints it: composed already to be checked, it is
    not composed by Hydra's command once more, which takes a third of the time."""
    from omegaconf import OmegaConf

    from easyllm.cli.compose import composed

    config, _ = composed(list(overrides), arguments.library)
    print(OmegaConf.to_yaml(OmegaConf.create(config)), end="")
    return 0


def sweep(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """One run for each combination of the values given, each as if typed by itself.

    A point that fails or is refused does not keep the others from running. Returns 0 when
    all were done, 1 otherwise.
    """
    absent = _absent_choices(arguments, overrides)
    failed = [f"{group}={value}" for group, value in absent]
    for group, value in absent:
        refuse([absent_option(arguments.library, group, value)], Origin(list(overrides)))
    points = list(itertools.product(*(_words(o, absent) for o in overrides)))
    if not arguments.overrides and arguments.spec_file is None:
        points = []
    for number, words in enumerate(points, 1):
        shown = " ".join(word.lstrip("+") if "=" in word else word for word in words)
        print(printable(f"\neasyllm | point {number}: {shown}"), file=sys.stderr, flush=True)
        ended = _run_point(arguments, list(words))
        if ended == INTERRUPTED:
            raise KeyboardInterrupt
        if ended:
            failed.append(shown)
    done = len(points) - (len(failed) - len(absent))
    say = f"\neasyllm | sweep: {done} of {len(points) + len(absent)} points done"
    told = say + "".join(f"\n  not done: {point}" for point in failed)
    print(printable(told), file=sys.stderr)
    return 1 if failed else 0


def _run_point(arguments: Arguments, words: list[str]) -> int:
    file = [] if arguments.spec_file is None else [str(arguments.spec_file)]
    command = [sys.executable, "-m", "easyllm", *file, *words]
    if arguments.config_dir is not None:
        command += ["--config-dir", str(arguments.config_dir)]
    if arguments.trust:
        command.append(TRUST)
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
    """Options of a swept group that no file has."""
    library = arguments.library
    return [
        (o.key, choice)
        for o in overrides
        if library.is_group(o.key)
        for choice in o.choices
        if not library.has(o.key, choice)
    ]


def _words(override: Override, absent: list[tuple[str, str]]) -> list[str]:
    """The word of each point, in the order of its values, absent options left out."""
    if not override.choices:
        return [override.text]
    key = override.text.partition("=")[0]
    return [f"{key}={c}" for c in override.choices if (override.key, c) not in absent]


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

    if any(f.partition("=")[0] in CFG for f in arguments.hydra_flags):
        from easyllm.runfile import read_config

        config = compose(list(overrides), arguments.library)
        _, found = read_config(config)
        found += _absent_package(arguments.hydra_flags, config)
        if found:
            raise SpecError(found)


def _absent_package(flags: list[str], config: dict[str, Any]) -> list[Problem]:
    """What is wrong with the part of the configuration that ``--package`` names."""
    given = dict(itertools.pairwise(flags)) | dict(
        flag.split("=", 1) for flag in flags if "=" in flag
    )
    return [
        Problem(
            flag, name, "is no part of this configuration",
            near(name, flatten(config)) or f"give {flag} model, or another key that it has",
        )
        for flag, name in given.items()
        if flag in PACKAGE and "job" in flags and not has(config, name)
    ]  # fmt: skip
