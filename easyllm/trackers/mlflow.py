"""Training metrics for MLflow."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.files import read_json, write_json
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Tracker
from easyllm.spec.run import RunSpec

DATABASES = ("sqlite", "postgresql", "mysql", "mssql")
AT_ONCE = 100
"""Most parameters that MLflow accepts in one request."""
LONGEST = 500
"""Most characters of a parameter's value that every MLflow server accepts."""


@dataclass(frozen=True, kw_only=True)
class MLflow(Tracker):
    """A run on an MLflow server, or in files of the run directory.

    The client reads names, passwords and certificates from its own environment variables, such as
    MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_TOKEN.
    """

    tracking_uri: str | None = None
    """The server's address, e.g. https://mlflow.example.org, or a folder, or a database, for which
    the full package ``mlflow`` must be installed. Null takes the environment variable
    MLFLOW_TRACKING_URI, or else ``mlruns`` in the run directory."""
    experiment: str = "easyllm"
    """The experiment that the run belongs to; it is created if it does not exist."""

    requires = {"mlflow": "mlflow"}  # noqa: RUF012  (a constant of the class)

    def missing(self, key: str, run: RunSpec) -> Iterator[Problem]:
        uri = self._uri() or ""
        if uri.split(":")[0].split("+")[0] in DATABASES and find_spec("sqlalchemy") is None:
            yield Problem(
                f"{key}.tracking_uri", uri, "a database needs the full package mlflow",
                "pip install mlflow, or give a server's address or a folder",
            )  # fmt: skip

    def _uri(self) -> str | None:
        return self.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")

    def open(
        self, name: str, folder: Path, settings: Mapping[str, Any], *, done: int = 0
    ) -> Writer:
        """Start a run, or resume the one that ``mlflow.json`` in the run directory ``folder``
        names. ``settings`` become its parameters.

        Raises UserError where MLflow cannot be reached.
        """
        # the client's own limits are minutes, in which training would wait
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        uri = self._uri() or str(folder / "mlruns")
        try:
            client = MlflowClient(tracking_uri=uri)
            return Writer(client, *self._run(client, uri, folder, settings))
        except Exception as error:  # from the client, its transport or the server
            raise UserError(
                f"training.trackers.{name}.tracking_uri={uri}: {_short(error)}; fix that, or "
                f"train without: ~training.trackers.{name}"
            ) from error

    def _run(
        self, client: Any, uri: str, folder: Path, settings: Mapping[str, Any]
    ) -> tuple[str, int]:
        """The id of the run and the last step that it has."""
        note = folder / "mlflow.json"
        # what was trained before and archived is another run
        here = {"tracking_uri": uri, "life": len(list(folder.glob("checkpoints.*")))}
        try:
            known = read_json(note)
        except (OSError, ValueError):
            known = {}
        if {key: known.get(key) for key in here} == here:
            found = str(known["run_id"])
            client.update_run(found, status="RUNNING")
            steps = client.get_metric_history(found, "tokens")
            return found, max((metric.step for metric in steps), default=0)
        made = client.create_run(self._experiment(client), run_name=folder.name)
        _describe(client, made.info.run_id, settings)
        write_json(note, {**here, "run_id": made.info.run_id})
        return made.info.run_id, 0

    def _experiment(self, client: Any) -> str:
        from mlflow.exceptions import MlflowException

        try:
            if found := client.get_experiment_by_name(self.experiment):
                return str(found.experiment_id)
            return str(client.create_experiment(self.experiment))
        except MlflowException:  # another run, started at the same time, may have made it
            if found := client.get_experiment_by_name(self.experiment):
                return str(found.experiment_id)
            raise


def _describe(client: Any, run: str, settings: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    params = [Param(key, str(value)[:LONGEST]) for key, value in settings.items()]
    for begin in range(0, len(params), AT_ONCE):
        client.log_batch(run, params=params[begin : begin + AT_ONCE])


class Writer:
    """A run that resumes after step ``done``.

    Values that cannot be sent wait for the next step; training does not stop for its tracker.
    MLflow's own asynchronous queue (``log_batch(synchronous=False)`` in 3.17) is not used: it drops
    the values that its server did not accept, and keeps the error in a future alone.
    """

    def __init__(self, client: Any, run: str, done: int):
        self._client, self._run, self._done = client, run, done
        self._waiting: list[Any] = []
        self._reported = False
        """Whether it was reported that values cannot be sent."""

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers among ``values`` at ``step``, unless the run already has that step.
        Steps that were made before the run was killed are made again from the last checkpoint."""
        if step <= self._done:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._waiting += [
            Metric(key, float(value), now, step)
            for key, value in values.items()
            if isinstance(value, int | float)
        ]
        self._send()

    def _send(self) -> None:
        try:
            while self._waiting:
                some = self._waiting[:AT_ONCE]
                self._client.log_batch(self._run, metrics=some)
                del self._waiting[: len(some)]
        except Exception as error:
            if not self._reported:
                print(f"MLflow: {_short(error)}; trying again each step", file=sys.stderr)
                self._reported = True

    def close(self) -> None:
        """Send the waiting values and end the run."""
        self._send()
        if self._waiting:
            print(f"MLflow lacks {len(self._waiting)} values; metrics.jsonl has them")
            return
        self._client.set_terminated(self._run)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
