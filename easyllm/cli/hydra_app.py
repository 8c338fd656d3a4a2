"""Sweeps, and questions about the configuration, which ``hydra.main`` answers."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from easyllm.cli.command_line.flags import SHELL, TRUST, Arguments
from easyllm.cli.command_line.overlay import has
from easyllm.cli.command_line.overrides import Override
from easyllm.cli.library import ROOT, absent_option
from easyllm.cli.origins import Origin
from easyllm.cli.report import refuse
from easyllm.components import resolver
from easyllm.errors import INTERRUPTED
from easyllm.printable import printable
from easyllm.runfile import places, read_config
from easyllm.signals import Asked
from easyllm.spec.defaults import filled
from easyllm.spec.problems import REQUIRED, Problem, SpecError, near
from easyllm.spec.schema import flatten


def inspect(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """Answer ``--cfg``, ``--info``, ``--help`` and similar flags."""
    flags = arguments.hydra_flags
    asked = [flag for flag in flags if SHELL.fullmatch(flag)]
    if "--cfg" in flags and "job" in flags:
        return _print_job(overrides, arguments)
    words = [o.text for o in overrides if not (asked or "--hydra-help" in flags)]
    others = [flag for flag in flags if flag not in asked]
    return _hydra(others, asked or words, arguments, lambda config: None)


def _print_job(overrides: Sequence[Override], arguments: Arguments) -> int:
    """Print the whole configuration with its defaults, which Hydra does not know; ``???`` marks
    keys that must be given."""
    import yaml

    from easyllm.cli import interpolation
    from easyllm.cli.compose import composed

    config, _ = composed(list(overrides), arguments.library)
    config = filled(config, resolver(*places(config)))
    if "--resolve" in arguments.hydra_flags:
        config = interpolation.resolved(config, [])
    package = dict(itertools.pairwise(arguments.hydra_flags)).get("--package")
    if package is not None:
        if not has(config, package):
            known = near(package, [*config, *flatten(config)])
            remedy = known or "give --package model, or another key that it has"
            message = "is not a part of this configuration"
            raise SpecError([Problem("--package", package, message, remedy)])
        for name in package.split("."):
            config = config[name]
        print(f"# @package {package}")
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    print(text.removesuffix("...\n"), end="")  # this mark ends a value that is alone
    return 0


def sweep(arguments: Arguments, overrides: Sequence[Override]) -> int:
    """Make one run for each combination of the given values, each as if typed by itself.

    If a point fails or is refused, the others still run. Returns 0 when all were done, 1 otherwise.
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
    summary = say + "".join(f"\n  not done: {point}" for point in failed)
    print(printable(summary), file=sys.stderr)
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
        except KeyboardInterrupt:  # the point got it too, and ends its ranks
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
    """The word of each point, in the order of its values, without absent options."""
    if not override.choices:
        return [override.text]
    key = override.text.partition("=")[0]
    return [f"{key}={c}" for c in override.choices if (override.key, c) not in absent]


def _hydra(flags: list[str], words: list[str], arguments: Arguments, task: Any) -> int:
    import hydra

    names = ["hydra.job.name=easyllm", "hydra.help.app_name='python -m easyllm'"]
    folder = [] if arguments.config_dir is None else ["--config-dir", str(arguments.config_dir)]
    # without "--" argparse takes the first override for the value of a flag such as --info
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

    if "--cfg" in arguments.hydra_flags:
        _, found = read_config(compose(list(overrides), arguments.library))
        if found := [problem for problem in found if problem.message != REQUIRED]:
            raise SpecError(found)
