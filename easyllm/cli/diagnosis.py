"""Why the chosen files cannot be composed: by file, entry and remedy.

Hydra's own messages name its internal steps. So the cause is searched for in the files themselves:
in the chosen files, and in those that their ``defaults`` name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from easyllm.cli.command_line.overrides import IN_ROOT, SEVERAL, TOGETHER, Override, of_hydra
from easyllm.cli.library import Library, absent_option
from easyllm.spec.problems import ABSENT, Problem, near

SELF = "_self_"
ENTRY = re.compile(r"((?:override|optional)\s+)?(/?)([\w./-]+?)(@[\w.:]+)?")
"""A key of ``defaults``: a keyword, a slash for a group of the root, the group, its package."""


def problems(error: Exception, groups: list[Override], library: Library) -> list[Problem]:
    """The problems with the chosen groups, for which Hydra raised ``error``."""
    found = list(_in_files(groups, library))
    return found or [_of_words(error, groups, library)]


def several(groups: list[Override], library: Library) -> list[Problem]:
    """Entries of ``defaults`` that choose several options where a run has one; Hydra would merge
    them."""
    found = _in_files(groups, library, library.user)  # those of the package are valid
    return [problem for problem in found if problem.message == SEVERAL]


def _in_files(
    groups: list[Override], library: Library, below: Path | None = None
) -> Iterator[Problem]:
    """What is wrong with the chosen files ``below`` a folder."""
    seen: set[Path] = set()
    for override in groups:
        if override.group and not (override.delete or override.choices):
            for option in override.options:
                name = f"{override.key.partition('@')[0]}/{option}"
                yield from _in_file(name, library, seen, below)


def _of_words(error: Exception, groups: list[Override], library: Library) -> Problem:
    """What is wrong with the words themselves, whose files are valid."""
    for override in groups:
        key, typed = override.key, override.typed or ABSENT
        if of_hydra(key):
            return Problem(
                key, typed, "is not a Hydra setting, or does not take this value",
                "leave it out; python -m easyllm --cfg hydra shows them",
            )  # fmt: skip
        if override.delete:
            return Problem(
                f"~{key}", typed, "removes an option that is not chosen",
                f"leave it out, or give ~{key} alone to remove any option",
            )  # fmt: skip
        if "@" in key:
            group = key.partition("@")[0]
            return Problem(
                key, typed, f"{group} cannot be placed elsewhere", f"give {group}={override.typed}"
            )  # fmt: skip
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        group, _, name = str(missing).rpartition("/")
        return absent_option(library, group or "defaults", name)
    last = groups[-1] if groups else None
    return Problem(
        last.key if last else "defaults", last.typed if last else ABSENT,
        "cannot be composed with the rest",
        "leave out one group or recipe after the other to find which; groups are maps of keys",
    )  # fmt: skip


def _in_file(name: str, library: Library, seen: set[Path], below: Path | None) -> Iterator[Problem]:
    """What is wrong with the file of an option, such as ``recipe/demo``, and with those that its
    defaults name."""
    from omegaconf import OmegaConf

    file = library.file(name)
    if file in seen or not file.is_relative_to(below or "/"):
        return
    seen.add(file)
    try:
        loaded: Any = OmegaConf.load(file)
        tree = OmegaConf.to_container(loaded)
    except Exception as error:  # of YAML, OmegaConf, the file system
        yield of_file(file, error)
        return
    if not isinstance(tree, dict):
        yield Problem(str(file), ABSENT, "holds no map of keys", "write <key>: <value> lines")
        return
    entries = tree.get("defaults", [])
    if not isinstance(entries, list):
        yield Problem(
            str(file), ABSENT, "its defaults are no list", "write defaults: [<name>, <name>]"
        )
        return
    overriding = False
    for entry in entries:
        problem, named = _of_entry(entry, name, file, library)
        is_override = isinstance(entry, dict) and any(str(k).startswith("override") for k in entry)
        if overriding and not is_override and entry != SELF and not problem:
            problem = _entry_problem(
                file, entry, "is after an override", "put the overrides at the end of defaults"
            )
        overriding = overriding or is_override
        if problem:
            yield problem
        for option in named:
            if library.file(option) == file:
                yield _entry_problem(file, entry, "is the file itself", "leave it out")
            else:
                yield from _in_file(option, library, seen, below)


def _of_entry(
    entry: Any, name: str, file: Path, library: Library
) -> tuple[Problem | None, list[str]]:
    """What is wrong with an entry of ``defaults``, and the files that a valid one names."""
    group = name.rpartition("/")[0]
    if entry == SELF or entry is None:
        return None, []
    if isinstance(entry, str):
        return _of_option(file, entry, group if not entry.startswith("/") else "", [entry], library)
    if not isinstance(entry, dict) or len(entry) != 1:
        why = "is neither a name nor one 'group: option'"
        return _entry_problem(file, entry, why, "begin each entry with its own '-'"), []
    ((key, value),) = entry.items()
    match = ENTRY.fullmatch(str(key))
    if match is None:
        return _entry_problem(file, entry, "is no group", "write /<group>: <option>"), []
    keyword, slash, path, package = (text or "" for text in match.groups())
    options = value if isinstance(value, list) else [value]
    placed = path if slash else f"{group}/{path}" if group else path
    right = f"override /{path}: {value}" if path in IN_ROOT else f"/{path}: {value}"
    if not slash and not library.is_group(placed) and library.is_group(path):
        why = f"means {placed}, and there is no such group"
        return _entry_problem(file, entry, why, f"write '{right}'"), []
    if not library.is_group(placed):
        return _entry_problem(file, entry, f"there is no group {placed}",
                              near(path, library.groups())
                              or f"there are {', '.join(library.groups())}"), []  # fmt: skip
    if not package and path in IN_ROOT and not keyword.startswith("override"):
        return _entry_problem(file, entry, f"{path} is chosen already", f"write '{right}'"), []
    if not package and path not in IN_ROOT and keyword.startswith("override"):
        why = f"no {path} is chosen that it could override"
        return _entry_problem(file, entry, why, f"write '{right}'"), []
    if len(options) > 1 and path not in TOGETHER:
        return _entry_problem(file, entry, SEVERAL, "give one"), []
    return _of_option(file, entry, placed, options, library)


def _of_option(
    file: Path, entry: Any, group: str, options: list[Any], library: Library
) -> tuple[Problem | None, list[str]]:
    names = [f"{group}/{option}".strip("/") for option in options if option is not None]
    for option, name in zip([o for o in options if o is not None], names, strict=True):
        plain = name.partition("@")[0]
        if "$" not in str(option) and not library.file(plain).is_file():
            folder = plain.rpartition("/")[0]
            known = library.options(folder)
            meant = near(str(option), known)
            there = f"there are {', '.join(known)}" if known else f"put {plain}.yaml there"
            why = f"there is no {plain}.yaml"
            return _entry_problem(file, entry, why, f"{meant} {there}".strip()), []
    return None, [name.partition("@")[0] for name in names if "$" not in name]


def _entry_problem(file: Path, entry: Any, message: str, remedy: str) -> Problem:
    shown = entry
    if isinstance(entry, dict) and len(entry) == 1:
        ((key, value),) = entry.items()
        shown = f"{key}: {value}"
    return Problem(f"defaults in {file}", shown, message, remedy)


def of_file(file: Path, error: Exception) -> Problem:
    """Why a YAML file cannot be read."""
    import yaml
    from omegaconf.errors import GrammarParseError

    key, remedy = str(file), "fix the file"
    if isinstance(error, yaml.YAMLError):
        mark = getattr(error, "problem_mark", None)
        line = f" in line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        return Problem(key, ABSENT, f"is not YAML{line}: {reason}", remedy)
    if isinstance(error, UnicodeDecodeError):
        return Problem(
            key, ABSENT, f"is not UTF-8 text from byte {error.start} on", "save it as UTF-8"
        )
    if isinstance(error, RecursionError):
        return Problem(key, ABSENT, "holds maps or lists within each other without end", remedy)
    if isinstance(error, OSError) and error.errno:
        return Problem(
            key, ABSENT, f"cannot be read: {error.strerror}", "give a file that can be read"
        )
    if isinstance(error, OSError):  # OmegaConf's, for a number
        return Problem(key, ABSENT, "holds no map of keys", "write <key>: <value> lines")
    if isinstance(error, GrammarParseError):
        return Problem(
            key, ABSENT, "has a value that cannot be read between ${ and }",
            "give ${<key>}, or \\${ for the characters themselves",
        )  # fmt: skip
    return Problem(
        key, ABSENT, "has a key or a value that a spec cannot hold",
        "write keys as text, and values as text, numbers, true, false, null, lists or maps",
    )  # fmt: skip
