"""The YAML files that can be composed: easyllm's, and those of a user's ``--config-dir``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from easyllm.spec.problems import ABSENT, Problem

ROOT = "config"
"""The file with which every composition begins."""


PACKAGE = "# @package "
"""The beginning of the line that says where a file's keys are placed."""


def shipped_folder() -> Path:
    """``conf``: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


@dataclass(frozen=True)
class Library:
    """Config groups and their options."""

    own: Path
    user: Path | None = None

    @property
    def folders(self) -> list[Path]:
        return [self.own] if self.user is None else [self.own, self.user]

    def is_group(self, key: str) -> bool:
        """Whether an override of ``key`` chooses a file instead of setting a value."""
        parts = [part for part in re.split(r"[./]", key.partition("@")[0]) if part]
        try:
            return bool(parts) and any(f.joinpath(*parts).is_dir() for f in self.folders)
        except OSError:  # a name longer than a file's can be
            return False

    def groups(self) -> list[str]:
        found = {p.name for folder in self.folders for p in folder.iterdir() if p.is_dir()}
        return sorted(name for name in found if not name.startswith((".", "_")))

    def options(self, group: str) -> list[str]:
        """The names that may be given for a group."""
        files = (p for folder in self.folders for p in (folder / group).glob("*.yaml"))
        return sorted({p.stem for p in files})

    def file(self, config_path: str) -> Path:
        """The file that Hydra takes for ``config_path``, e.g. ``recipe/demo``."""
        files = [folder / f"{config_path}.yaml" for folder in self.folders]
        return next((f for f in files if f.is_file()), files[0])

    def has(self, group: str, option: str) -> bool:
        """Whether a group has an option."""
        try:
            return "\0" not in option and self.file(f"{group}/{option}").is_file()
        except OSError:  # a name longer than a file's can be
            return False

    def package(self, group: str, option: str) -> str:
        """The dotted key at which an option's keys are placed."""
        for line in self.file(f"{group}/{option}").read_text("utf-8").splitlines():
            if line.startswith(PACKAGE):
                package = line.removeprefix(PACKAGE).strip()
                return "" if package == "_global_" else package
        return group.replace("/", ".")

    def tree(self, group: str, option: str) -> dict[str, Any]:
        """An option's own keys."""
        from omegaconf import OmegaConf

        tree: Any = OmegaConf.to_container(OmegaConf.load(self.file(f"{group}/{option}")))
        return {key: value for key, value in tree.items() if key != "defaults"}

    def problems(self) -> list[Problem]:
        """What is wrong with the user's folder."""
        if self.user is None:
            return []
        if not self.user.is_dir():
            return [
                Problem(
                    "--config-dir", str(self.user), "is not a folder",
                    "give the folder that holds recipe/, model/, data/ …",
                )
            ]  # fmt: skip
        clashes = []
        for file in sorted(self.user.rglob("*.yaml")):
            name = file.relative_to(self.user)
            if (self.own / name).is_file():
                clashes.append(
                    Problem(
                        "--config-dir", str(file), f"has the name of a shipped {name}",
                        "give it another name; it can build on easyllm's with "
                        f"'defaults: [{name.stem}]'",
                    )
                )  # fmt: skip
        return clashes

    def line(self, group: str, option: str) -> str:
        """The description of an option: the first sentence of the first comment of its file."""
        text = ""
        for line in self.file(f"{group}/{option}").read_text("utf-8").splitlines():
            if line.startswith("#") and not line.startswith("# @package"):
                text = f"{text} {line.lstrip('# ').strip()}".strip()
            if text and (text.endswith(".") or not line.startswith("#")):
                break
        return text


def absent_option(library: Library, group: str, value: str) -> Problem:
    """The problem of a group's option that no file has."""
    from easyllm.spec.problems import near

    options = library.options(group)
    meant = near(value, options)
    known = f"there are {', '.join(options)}" if options else "no such group"
    return Problem(group, value or ABSENT, "no such file", f"{meant} {known}".strip())
