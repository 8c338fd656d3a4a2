"""The parts of the command line: flags, overrides, a file."""

from __future__ import annotations

import argparse
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from easyllm.cli.library import Library, shipped_folder
from easyllm.spec.problems import ABSENT, Problem, SpecError, near

HYDRA = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": (),
    "--shell-completion": (),
}
"""Flags that ask Hydra about the configuration, each with the words that it may take; an empty list
allows any word. Nothing runs."""
ASKING = ("--help", "--hydra-help", "--resolve")
"""Flags for Hydra that take no word."""
CONFIG_DIR, TRUST = "--config-dir", "--trust"
WITH_WORD = (*HYDRA, CONFIG_DIR)
ALONE = (*ASKING, TRUST, "--multirun", "--version")
SHORT = {
    "--cfg": ("-c",), "--info": ("-i",), "--package": ("-p",), "--shell-completion": ("-sc",),
    CONFIG_DIR: ("-cd",), "--help": ("-h",), "--multirun": ("-m",),
}  # fmt: skip
SHELL = re.compile(r"(install|uninstall)=(bash|zsh|fish)|query=\w+")
"""The words that the flag for shell completion takes."""
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
    """Import code from any folder that ``spec_file`` names."""
    version: bool = False

    @property
    def library(self) -> Library:
        return Library(shipped_folder(), self.config_dir)

    @property
    def empty(self) -> bool:
        return not (self.overrides or self.spec_file or self.hydra_flags or self.sweep)


def _parser() -> argparse.ArgumentParser:
    """Every flag that takes a word may be given without it, so that easyllm's own message reports
    that."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in WITH_WORD:
        parser.add_argument(flag, *SHORT.get(flag, ()), nargs="?", const="")
    for flag in ALONE:
        parser.add_argument(flag, *SHORT.get(flag, ()), action="store_true")
    return parser


def parse(words: list[str]) -> Arguments:
    """Sort the words; raises SpecError for a word that is not a flag, an override or a file."""
    try:
        found, rest = _parser().parse_known_args(list(_separate(words)))
    except argparse.ArgumentError as error:
        flag = str(error.argument_name).rpartition("/")[2]
        raise SpecError([Problem(flag, ABSENT, "takes no value", f"give {flag} alone")]) from None
    overrides: list[str] = []
    files: list[str] = []
    for word in rest:
        if word.startswith("-"):
            flags = sorted(
                {*WITH_WORD, *ALONE, *(name for names in SHORT.values() for name in names)}
            )
            remedy = near(word.partition("=")[0], flags) or ", ".join(flags)
            raise SpecError([Problem(word, ABSENT, "no such flag", remedy)])
        if "=" in word or word.startswith("~"):
            overrides.append(word)
        elif word.endswith((".yaml", ".yml")):
            files.append(word)
        else:
            raise SpecError([_not_an_override(word)])
    if len(files) > 1:
        raise SpecError([Problem(files[1], ABSENT, "is a second file", f"give {files[0]} alone")])
    folder = found.config_dir
    if folder == "":
        raise SpecError(
            [Problem(CONFIG_DIR, ABSENT, "needs a folder", f"give {CONFIG_DIR} FOLDER")]
        )
    arguments = Arguments(
        overrides=overrides,
        spec_file=Path(files[0]) if files else None,
        config_dir=None if folder is None else Path(folder).absolute(),
        hydra_flags=_of_hydra(found),
        sweep=found.multirun,
        trust=found.trust,
        version=found.version,
    )
    return _consistent(_of_recipe(arguments))


def _separate(words: list[str]) -> Iterator[str]:
    """The words, separated so that an override after a flag is not taken for the flag's word."""
    long = {name: flag for flag in HYDRA for name in (flag, *SHORT.get(flag, ()))}
    for word, after in itertools.zip_longest(words, words[1:], fillvalue=""):
        own = after.replace("-", "").replace(".", "").isidentifier() or SHELL.fullmatch(after)
        yield word if own or word not in long else f"{long[word]}="


def _of_hydra(found: argparse.Namespace) -> list[str]:
    """The flags that Hydra answers, each with its word. Raises SpecError for a wrong word."""
    flags = [flag for flag in ASKING if getattr(found, flag[2:].replace("-", "_"))]
    for flag, choices in HYDRA.items():
        value = getattr(found, flag[2:].replace("-", "_"))
        if value is None:
            continue
        if flag == "--shell-completion":
            if not SHELL.fullmatch(value):
                raise SpecError(
                    [
                        Problem(
                            flag, value or ABSENT, "needs to know for which shell",
                            f"give {flag} install=bash",
                        )
                    ]
                )  # fmt: skip
        elif not (value in choices if choices else value) and not (flag == "--info" and not value):
            message = "has nothing of that name to show" if value else "needs to know what to show"
            remedy = f"one of {', '.join(choices)}" if choices else f"give {flag} KEY, e.g. model"
            raise SpecError([Problem(flag, value or ABSENT, message, remedy)])
        flags += [flag, value] if value else [flag]
    return flags


def _not_an_override(word: str) -> Problem:
    library = Library(shipped_folder())
    if word in library.options(RECIPE):
        return Problem(word, ABSENT, "is a recipe", f"give +recipe={word}")
    return Problem(
        word, ABSENT, "is neither key=value nor a run.yaml", "give +recipe=NAME key=value …"
    )


def _of_recipe(arguments: Arguments) -> Arguments:
    """Read ``FOLDER/recipe/NAME.yaml`` as ``+recipe=NAME --config-dir FOLDER``; else keep it."""
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
    """Whether a file builds on others, as recipes do; a complete spec does not."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError):  # reported when it is read
        return False
    return any(line.startswith(("# @package", "defaults:")) for line in lines)


def _shipped_recipes() -> Path:
    return (shipped_folder() / RECIPE).resolve()


def _consistent(arguments: Arguments) -> Arguments:
    """Raises SpecError for flags that cannot be combined."""
    shown = [flag for flag in arguments.hydra_flags if flag.startswith("-")]
    problems = []
    if shown and arguments.sweep:
        problems.append(
            Problem("-m", ABSENT, f"cannot go with {shown[0]}", f"leave {shown[0]} out")
        )
    if shown and arguments.spec_file is not None:
        problems.append(
            Problem(
                shown[0], ABSENT, "is for recipes and groups, not for a complete spec",
                f"leave it out, and read {arguments.spec_file}",
            )
        )  # fmt: skip
    for flag in shown:
        if flag in ("--package", "--resolve") and "--cfg" not in shown:
            problems.append(
                Problem(flag, ABSENT, "can be given with --cfg only", f"give --cfg job {flag}")
            )
    if problems:
        raise SpecError(problems)
    return arguments
