"""Makes a spec that may run from plain configuration, or reports every problem in it at once."""

from __future__ import annotations

from typing import Any

from easyllm import preflight, runfile
from easyllm.cli.library import Library
from easyllm.spec import checks
from easyllm.spec.problems import SpecError, without_consequences
from easyllm.spec.run import RunSpec


def check(config: dict[str, Any], library: Library) -> RunSpec:
    """The spec in ``config``, reduced where it asks for that, after every check.

    Raises SpecError with all problems. Reads small files, writes nothing.
    """
    if library.user is not None:
        _add_user_folder(config, str(library.user))
    run, own = runfile.read_config(config)
    run = preflight.settled(run)
    own += preflight.of_model(run)
    if run.smoke is not None and not own:
        from easyllm.smoke import shrink

        run = shrink(run)
    found = without_consequences(own, [*checks.problems(run), *preflight.problems(run)])
    if found:
        raise SpecError(found)
    return run


def _add_user_folder(config: dict[str, Any], folder: str) -> None:
    """Make classes beside the user's YAML files importable, so that the files can name them."""
    places = config.setdefault("components", {})
    if isinstance(places, dict):
        path = places.setdefault("path", [])
        if isinstance(path, list) and folder not in path:
            path.append(folder)
