"""The command: composes a spec with Hydra, checks it and runs it. Imports nothing heavy."""

from __future__ import annotations

import sys
from pathlib import Path

from easyllm.cli.command_line import flags
from easyllm.cli.command_line.flags import Arguments
from easyllm.cli.command_line.overrides import Override, line_breaks_not_meant, read
from easyllm.cli.compose import complete
from easyllm.cli.origins import OfComposition, OfFile, OfWords, Origin
from easyllm.cli.report import refuse
from easyllm.errors import DONE, FAILED, INTERRUPTED, STOPPED, UserError
from easyllm.printable import printable
from easyllm.signals import Asked, stoppable
from easyllm.spec.problems import SpecError
from easyllm.spec.run import RunSpec


def main(words: list[str]) -> int:
    """Run a command line; returns the exit status."""
    try:
        with stoppable():
            return _carried_out(words)
    except Asked:
        print("easyllm: stopped by a signal", file=sys.stderr)
        return STOPPED


def _carried_out(words: list[str]) -> int:
    origin: Origin = OfWords()
    try:
        arguments = flags.parse(words)
        if arguments.version:
            from easyllm import __version__

            print(__version__)
            return DONE
        if problems := arguments.library.problems():
            raise SpecError(problems)
        if "--help" in arguments.hydra_flags:
            from easyllm.cli.help import help_page

            print(help_page(arguments.library))
            return DONE
        if arguments.empty:
            from easyllm.cli.help import page

            print(page(arguments.library))
            return DONE
        overrides = read(arguments.overrides, arguments.library, arguments.sweep)
        for line in line_breaks_not_meant(overrides):
            print(printable(f"easyllm | {line}", keep=""), file=sys.stderr)
        if arguments.spec_file is None:
            origin = OfComposition(overrides, arguments.library)
            overrides = complete(overrides, arguments.library)
            origin = OfComposition(overrides, arguments.library)
        else:
            origin = OfFile(arguments.spec_file, overrides)
        if arguments.sweep or arguments.hydra_flags:
            return _hydra(arguments, overrides)
        if arguments.spec_file is not None:
            run = _again(arguments, arguments.spec_file, overrides)
        else:
            run = _composed(arguments, overrides)
        return _start(run)
    except SpecError as error:
        return refuse(error.problems, origin)
    except KeyboardInterrupt:
        return INTERRUPTED


def _composed(arguments: Arguments, overrides: list[Override]) -> RunSpec:
    from easyllm.cli.check import check
    from easyllm.cli.compose import compose
    from easyllm.dispatcher.identity import resolved

    run = check(compose(overrides, arguments.library), arguments.library)
    return run if _follows(run) else resolved(run)


def _again(arguments: Arguments, file: Path, overrides: list[Override]) -> RunSpec:
    """The run of a run.yaml; with other values it is another run in another directory."""
    from easyllm.cli import trust
    from easyllm.cli.check import check
    from easyllm.cli.compose import from_file
    from easyllm.dispatcher.identity import moved, resolved

    trust.check(arguments, file, overrides)
    run = check(from_file(file, overrides), arguments.library)
    if _follows(run):
        return run
    run = resolved(run)
    if not overrides:
        return run
    try:
        before = check(from_file(file, []), arguments.library)
    except SpecError:  # complete with the overrides only: there is no run of the file alone
        return run
    return moved(resolved(before), run)


def _hydra(arguments: Arguments, overrides: list[Override]) -> int:
    from easyllm.cli import hydra_app

    if arguments.sweep and not arguments.hydra_flags:
        return hydra_app.sweep(arguments, overrides)
    hydra_app.checked(arguments, overrides)
    return hydra_app.inspect(arguments, overrides)


def _start(run: RunSpec) -> int:
    if not run.stages:
        from easyllm.cli.help import valid

        print(valid(run))
        return DONE
    try:
        if (
            _follows(run)
            and (status := run.hardware.launcher.follow(run.hardware.nodes)) is not None
        ):
            return status
        from easyllm.dispatcher.run import dispatch

        return dispatch(run)
    except UserError as error:
        print(printable(f"easyllm: {error}"), file=sys.stderr)
        return FAILED
    except OSError as error:
        from easyllm.files import full_disk

        if (full := full_disk(error)) is None:
            raise
        print(printable(f"easyllm: {full}"), file=sys.stderr)
        return FAILED


def _follows(run: RunSpec) -> bool:
    """Whether the run is owned by another machine, on which the same command was given."""
    return bool(run.stages) and run.hardware.launcher.follows(run.hardware.nodes)


def entry() -> None:
    """The console script."""
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    entry()
