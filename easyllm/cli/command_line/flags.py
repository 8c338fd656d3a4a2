"""What stands on the command line: flags, overrides, a file."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyllm.cli.library import Library, shipped_folder
from easyllm.spec.problems import ABSENT, Problem, SpecError, near

SWEEP = {"-m", "--multirun"}
HYDRA = {"--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--help", "-h",
         "--hydra-help", "--shell-completion", "-sc"}  # fmt: skip
"""Flags that ask Hydra about the configuration; nothing runs."""
CFG, INFO, PACKAGE = {"--cfg", "-c"}, {"--info", "-i"}, {"--package", "-p"}
ABOUT = {
    **dict.fromkeys(CFG, ("job", "hydra", "all")),
    **dict.fromkeys(INFO, ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")),
}
"""What may be asked of the flags that take such a word."""
COMPLETION = {"--shell-completion", "-sc"}
SHELL = re.compile(r"(install|uninstall)=(bash|zsh|fish)|query=\w+")
"""What is asked of shell completion."""
CONFIG_DIR = {"--config-dir", "-cd"}
TRUST, VERSION = "--trust", "--version"
RECIPE = "recipe"


@dataclass(frozen=True)
class Arguments:
    overrides: list[str] = field(default_factory=list)
    """``key=value`` words, as typed."""
    spec_file: Path | None = None
    """A resolved spec to run again."""
    config_dir: Path | None = None
    hydra_flags: list[str] = field(default_factory=list)
    sweep: bool = False
    trust: bool = False
    """Import code from wherever ``spec_file`` says."""
    version: bool = False

    @property
    def library(self) -> Library:
        return Library(shipped_folder(), self.config_dir)

    @property
    def empty(self) -> bool:
        return not (self.overrides or self.spec_file or self.hydra_flags or self.sweep)


def parse(words: list[str]) -> Arguments:
    """Sort the words; raises SpecError for one that is none of what can stand there."""
    found: dict[str, Any] = {"overrides": [], "hydra_flags": []}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        flag, given, value = word.partition("=")
        if flag in CONFIG_DIR:
            folder = value if given else rest.pop(0) if rest else None
            if not folder:
                raise SpecError([Problem(flag, ABSENT, "needs a folder", f"give {flag} FOLDER")])
            found["config_dir"] = Path(folder).absolute()
        elif word in SWEEP:
            found["sweep"] = True
        elif word == TRUST:
            found["trust"] = True
        elif word == VERSION:
            found["version"] = True
        elif flag in HYDRA:
            found["hydra_flags"] += [word, *_asked(flag, given, value, rest)]
        elif word.startswith("-"):
            flags = sorted(SWEEP | HYDRA | CONFIG_DIR | {TRUST, VERSION})
            raise SpecError(
                [Problem(word, ABSENT, "no such flag", near(word, flags) or ", ".join(flags))]
            )
        elif not given and not word.startswith("~") and word.endswith((".yaml", ".yml")):
            if "spec_file" in found:
                raise SpecError(
                    [Problem(word, ABSENT, "is a second file", f"give {found['spec_file']} alone")]
                )
            found["spec_file"] = Path(word)
        elif not given and not word.startswith("~"):
            raise SpecError([_not_an_override(word)])
        else:
            found["overrides"].append(word)
    return _consistent(_of_recipe(Arguments(**found)))


def _asked(flag: str, given: str, value: str, rest: list[str]) -> list[str]:
    """The word after one of Hydra's flags that belongs to it. Raises SpecError for a wrong one."""
    if flag in COMPLETION:
        if rest and SHELL.fullmatch(rest[0]):
            return [rest.pop(0)]
        raise SpecError(
            [Problem(flag, ABSENT, "needs to know for which shell", f"give {flag} install=bash")]
        )
    if flag not in ABOUT and flag not in PACKAGE:
        return []
    taken = []
    if not given and rest and rest[0].replace("-", "").replace(".", "").isidentifier():
        value = rest.pop(0)
        taken = [value]
    if flag in INFO and not value:
        return []
    choices = ABOUT.get(flag, ())
    if not value or (choices and value not in choices):
        told = f"one of {', '.join(choices)}" if choices else f"give {flag} KEY, e.g. model"
        message = "shows nothing of that name" if value else "needs to know what to show"
        raise SpecError([Problem(flag, value or ABSENT, message, told)])
    return taken


def _not_an_override(word: str) -> Problem:
    library = Library(shipped_folder())
    if word in library.options(RECIPE):
        return Problem(word, ABSENT, "is a recipe", f"give +recipe={word}")
    return Problem(
        word, ABSENT, "is neither key=value nor a run.yaml", "give +recipe=NAME key=value …"
    )


def _of_recipe(arguments: Arguments) -> Arguments:
    """``FOLDER/recipe/NAME.yaml`` is ``+recipe=NAME --config-dir FOLDER``; any other file stays."""
    file = arguments.spec_file
    if file is None or not _composes(file):
        return arguments
    place = file.absolute()
    folder: Path | None = place.parent.parent
    if place.parent.name != RECIPE and place.parent.resolve() != _shipped_recipes():
        raise SpecError(
            [
                Problem(
                    str(file), ABSENT, "is a recipe, and recipes are found in folders named recipe",
                    f"move it to {place.parent / RECIPE / place.name}, and give that path",
                )
            ]
        )  # fmt: skip
    if place.parent.resolve() == _shipped_recipes():
        folder = arguments.config_dir
    elif arguments.config_dir not in (None, folder):
        raise SpecError(
            [
                Problem(
                    "--config-dir", str(arguments.config_dir), f"{file} is of {folder}",
                    f"give +recipe={file.stem} for that of --config-dir, or leave --config-dir out",
                )
            ]
        )  # fmt: skip
    return Arguments(
        overrides=[f"+{RECIPE}={file.stem}", *arguments.overrides],
        config_dir=folder,
        hydra_flags=arguments.hydra_flags,
        sweep=arguments.sweep,
        trust=arguments.trust,
        version=arguments.version,
    )


def _composes(file: Path) -> bool:
    """Whether a file builds on others, as recipes do; a spec that stands by itself does not."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # told when it is read
        return False
    return any(line.startswith(("# @package", "defaults:")) for line in lines)


def _shipped_recipes() -> Path:
    return (shipped_folder() / RECIPE).resolve()


def _consistent(arguments: Arguments) -> Arguments:
    """Raises SpecError for flags that say nothing together."""
    flags = [flag.partition("=")[0] for flag in arguments.hydra_flags]
    shown = [flag for flag in flags if flag.startswith("-")]
    cfg = bool(CFG & set(shown))
    problems = []
    if shown and arguments.sweep:
        problems.append(
            Problem("-m", ABSENT, f"cannot go with {shown[0]}", f"leave {shown[0]} out")
        )
    if shown and arguments.spec_file is not None:
        problems.append(
            Problem(
                shown[0], ABSENT, "is asked of recipes and groups, not of a spec that stands alone",
                f"leave it out, and read {arguments.spec_file}",
            )
        )  # fmt: skip
    for flag in shown:
        if flag in PACKAGE | {"--resolve"} and not cfg:
            problems.append(Problem(flag, ABSENT, "is of --cfg only", f"give --cfg job {flag}"))
    if problems:
        raise SpecError(problems)
    return arguments
