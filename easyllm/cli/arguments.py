"""What stands on the command line."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from easyllm.cli.library import Library, shipped_folder
from easyllm.spec.problems import Problem, SpecError, near
from easyllm.spec.schema import TARGET, role_at

SWEEP = {"-m", "--multirun"}
HYDRA = {"--cfg", "-c", "--resolve", "--package", "-p", "--info", "-i", "--help", "-h",
         "--hydra-help", "--shell-completion", "-sc"}  # fmt: skip
"""Flags that ask Hydra about the configuration; nothing runs."""
TAKES_VALUE = {"--cfg", "-c", "--package", "-p", "--info", "-i"}
CONFIG_DIR = {"--config-dir", "-cd"}
BRACKETED = re.compile(r"[\w./:-]+\[[\w.,*]*\]")
"""A value such as ``local[4]``, which Hydra's grammar takes within quotes only."""


@dataclass(frozen=True)
class Arguments:
    overrides: list[str] = field(default_factory=list)
    """``key=value`` words, as typed."""
    spec_file: Path | None = None
    """A resolved spec to run again."""
    config_dir: Path | None = None
    hydra_flags: list[str] = field(default_factory=list)
    sweep: bool = False
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
                raise SpecError([Problem(flag, None, "needs a folder", f"give {flag} FOLDER")])
            found["config_dir"] = Path(folder).absolute()
        elif word in SWEEP:
            found["sweep"] = True
        elif word == "--version":
            found["version"] = True
        elif flag in HYDRA:
            found["hydra_flags"].append(word)
            if flag in TAKES_VALUE and not given and rest and rest[0].isalpha():
                found["hydra_flags"].append(rest.pop(0))
        elif word.startswith("-"):
            flags = sorted(SWEEP | HYDRA | CONFIG_DIR | {"--version"})
            raise SpecError(
                [Problem(word, None, "no such flag", near(word, flags) or ", ".join(flags))]
            )
        elif not given and not word.startswith("~") and word.endswith((".yaml", ".yml")):
            found["spec_file"] = Path(word)
        elif not given and not word.startswith("~"):
            raise SpecError([_not_an_override(word)])
        else:
            found["overrides"].append(word)
    return Arguments(**found)


def _not_an_override(word: str) -> Problem:
    library = Library(shipped_folder())
    if word in library.options("recipe"):
        return Problem(word, None, "is a recipe", f"give +recipe={word}")
    return Problem(
        word, None, "is neither key=value nor a run.yaml", "give +recipe=NAME key=value …"
    )


@dataclass(frozen=True)
class Override:
    """One ``key=value`` of the command line, read by Hydra's grammar."""

    key: str
    text: str
    """The word to hand to Hydra."""
    value: Any
    """None for a sweep."""
    group: bool
    delete: bool
    choices: tuple[str, ...] = ()
    """The values of a sweep."""


def read(words: list[str], library: Library, sweep: bool = False) -> list[Override]:
    """The overrides, each made one that Hydra neither refuses nor needs a sign for.

    The sign before a key (``+``, ``++`` or none) says whether the key is there already.
    Groups get the sign that Hydra wants, values get ``++``: whether a key exists is the
    validator's to say, which says it together with all other problems. A word that names a
    component puts it in place of the one that stood there; it comes first, whatever the order,
    so that ``schedule=linear schedule.floor=0.2`` are fields of the new one.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    in_root = {"model", "data", "parallelism", "hardware"}
    named: list[Override] = []
    overrides, problems = [], []
    for word in words:
        key, given, text = word.lstrip("+~").partition("=")
        if given and BRACKETED.fullmatch(text):
            text = f"'{text}'"
            word = f"{word.partition('=')[0]}={text}"
        try:
            parsed = parser.parse_override(word)
        except HydraException as error:
            reason = str(error).splitlines()[0].partition(":")[0].lower()
            problems.append(
                Problem(key, text, f"cannot be read ({reason})", f"quote it: '{key}=\"{text}\"'")
            )
            continue
        swept = parsed.is_sweep_override()
        if swept and not sweep:
            problems.append(
                Problem(
                    key, text, "is several values",
                    "add -m to run each of them, or give a list: [a,b]",
                )
            )  # fmt: skip
            continue
        group = library.is_group(key) and not isinstance(parsed.value(), dict | list)
        value = None if swept else parsed.value()
        if not (group or parsed.is_delete()) and _names_component(key, value):
            named += [
                Override(key, f"++{key}=null", None, group=False, delete=False),
                Override(key, f"++{key}={{{TARGET}: {value}}}", {TARGET: value}, False, False),
            ]
            continue
        body = f"{key}={text}" if "=" in word else key
        if parsed.is_delete():
            sign = "~"
        elif key.startswith("hydra"):
            sign = ""
        elif group:
            sign = "" if key in in_root or "@" in key else "+"
        else:
            sign = "++"
        overrides.append(
            Override(
                key=key,
                text=sign + body,
                value=value,
                group=group,
                delete=parsed.is_delete(),
                choices=tuple(parsed.sweep_string_iterator()) if swept else (),
            )
        )
    if problems:
        raise SpecError(problems)
    return named + overrides


def _names_component(key: str, value: Any) -> bool:
    name = isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*", value)
    return bool(name) and role_at(key) is not None
