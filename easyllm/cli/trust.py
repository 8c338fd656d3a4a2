"""Whether code may be imported from the folders that a spec file names.

A run.yaml from another person names folders of modules in ``components.path``, and a user who runs
it runs their code. Folders in which the user works, or which the user names, are accepted without a
message.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from easyllm.cli.command_line.flags import Arguments
from easyllm.cli.command_line.overlay import tree
from easyllm.cli.command_line.overrides import Override
from easyllm.cli.compose import from_file
from easyllm.components import outside
from easyllm.printable import printable
from easyllm.runfile import places
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.schema import flatten

KEY = "components.path"


def check(arguments: Arguments, file: Path, overrides: list[Override]) -> None:
    """Check the folders before anything is imported. Raises SpecError where ``file`` names a folder
    that is not below the current one or ``--config-dir``, nor on the command line, and ``--trust``
    is not given."""
    configs = [from_file(file, overrides)]
    if overrides:
        # the run that the file itself describes is found by reading it without them
        with contextlib.suppress(SpecError):  # it may be handwritten and complete only with them
            configs.append(from_file(file, []))
    homes = [Path.cwd(), *filter(None, [arguments.config_dir]), *map(Path, _given(overrides))]
    foreign = {folder: config for config in reversed(configs) for folder in _foreign(config, homes)}
    if foreign and not arguments.trust:
        raise SpecError([_problem(folder, config) for folder, config in foreign.items()])
    for folder, config in foreign.items():
        line = f"easyllm | --trust: {_names(config)} imported from {_real(folder)}"
        print(printable(line), file=sys.stderr)


def _foreign(config: Mapping[str, Any], homes: list[Path]) -> list[str]:
    return outside(places(config)[1], homes)


def _given(overrides: list[Override]) -> Iterator[str]:
    """The folders that are given on the command line."""
    for override in overrides:
        if override.key.startswith(f"{KEY}."):  # one item of the list
            yield str(override.value)
        elif isinstance(laid := tree(override), Mapping):
            yield from places(laid)[1]


def _problem(folder: str, config: Mapping[str, Any]) -> Problem:
    real = _real(folder)
    leads = f"leads to {real}, which" if str(real) != folder else "is a folder that"
    return Problem(
        KEY, folder,
        f"{leads} is neither in the current folder nor in --config-dir: {_names(config)} would be "
        "imported from there, and run",
        "look at the code there, then give --trust",
    )  # fmt: skip


def _names(config: Mapping[str, Any]) -> str:
    """The names in the spec that are from the modules it allows."""
    allow, _ = places(config)
    values = [value for value in flatten(config).values() if isinstance(value, str)]
    found = {v for v in values if any(v.startswith(f"{prefix}.") for prefix in allow)}
    return ", ".join(sorted(found)) or "modules that are not found elsewhere"


def _real(folder: str) -> Path:
    return Path(folder).expanduser().resolve()
