"""Training metrics for Weights & Biases."""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from easyllm.errors import UserError
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Tracker
from easyllm.spec.run import RunSpec


@dataclass(frozen=True, kw_only=True)
class WandB(Tracker):
    """A run on a Weights & Biases server, or files in the run directory that can be sent there
    later."""

    project: str = "easyllm"
    """The project on the server that the run belongs to."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` writes ``wandb`` in the run directory, for ``wandb sync``."""

    requires = {"wandb": "wandb"}  # noqa: RUF012  (a constant of the class)

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        if "train" in run.stages and self.mode == "online" and not _has_key():
            yield Problem(
                f"{key}.mode", self.mode, f"there is no key for {_server()}",
                f"run 'wandb login', set WANDB_API_KEY, or give {key}.mode=offline",
            )  # fmt: skip

    def open(
        self, name: str, folder: Path, settings: Mapping[str, Any], *, done: int = 0
    ) -> Writer:
        """Start a run; ``settings`` become its configuration. ``folder`` is the run directory,
        whose name is the run's id, so that a resumed run continues the same one.

        Raises UserError where the server cannot be reached.
        """
        import wandb

        try:
            run = wandb.init(
                project=self.project,
                name=folder.name,
                id=folder.name,
                resume="allow" if self.mode == "online" else None,
                dir=folder,
                mode=self.mode,
                config=dict(settings),
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(
                f"training.trackers.{name}: {first}; fix that, give training.trackers.{name}."
                f"mode=offline, or train without: ~training.trackers.{name}"
            ) from error
        return Writer(run)


def _server() -> str:
    """The address of the server, as wandb takes it."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _has_key() -> bool:
    """Whether there is a key in one of the places where wandb's client, version 0.31, looks."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    home = Path(os.path.expanduser("~"))  # noqa: PTH111  (Path's raises where there is none)
    given = os.environ.get("NETRC")
    for file in [home.joinpath(given)] if given else [home / ".netrc", home / "_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(file).authenticators(urlsplit(_server()).netloc):
                return True
    folder = os.environ.get("WANDB_CONFIG_DIR") or home / ".config" / "wandb"
    for file in (Path(folder) / "settings", Path("wandb") / "settings"):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if "api_key" in file.read_text("utf-8"):
                return True
    return False


class Writer:
    """An open run."""

    def __init__(self, run: Any):
        self._run = run

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among ``values`` at ``step``."""
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        self._run.log(numbers, step=step)

    def close(self) -> None:
        """End the run and wait until all of it is written or sent."""
        import wandb

        self._run.finish()
        wandb.teardown()  # finish() alone can return before its service has written the file
