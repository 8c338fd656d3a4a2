"""MLflow in a folder and behind a server that goes away, read back by its own client."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from easyllm.errors import UserError
from easyllm.trackers.async_tracker import AsyncTracker
from easyllm.trackers.mlflow import LONGEST, MLflow
from tests.support import PATIENCE


@pytest.fixture(autouse=True)
def folders_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def runs(uri: str, experiment: str = "easyllm") -> list[Any]:
    """The runs of an experiment, the oldest first."""
    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id], order_by=["start_time ASC"]))


def losses(uri: str, run: Any) -> list[tuple[int, float]]:
    history = MlflowClient(tracking_uri=uri).get_metric_history(run.info.run_id, "loss")
    return sorted((metric.step, metric.value) for metric in history)


def test_numbers_by_step_and_the_settings(tmp_path: Path) -> None:
    settings = {"training.steps": 2, "long": "x" * 10_000, **{f"k{n}": n for n in range(150)}}
    writer = MLflow().open("mine", tmp_path, settings)
    writer.log(1, {"loss": 3.5, "tokens": 10, "note": "text is left out", "mfu": None})
    writer.log(2, {"loss": 2.25, "tokens": 20})
    writer.close()
    (run,) = runs(str(tmp_path / "mlruns"))
    assert losses(str(tmp_path / "mlruns"), run) == [(1, 3.5), (2, 2.25)]
    assert set(run.data.metrics) == {"loss", "tokens"}
    assert run.data.params["training.steps"] == "2" and len(run.data.params) == len(settings)
    assert run.data.params["long"] == "x" * LONGEST
    assert (run.info.run_name, run.info.status) == (tmp_path.name, "FINISHED")


def test_a_resumed_run_goes_on_in_the_same_one(tmp_path: Path) -> None:
    uri = str(tmp_path / "kept")
    tracker = MLflow(tracking_uri=uri, experiment="mine")
    folder = tmp_path / "run"
    folder.mkdir()
    first = tracker.open("mine", folder, {"a": 1})
    for step in (1, 2, 3):  # and is killed: nothing is closed
        first.log(step, {"loss": 10.0 - step, "tokens": 8})
    assert runs(uri, "mine")[0].info.status == "RUNNING"
    again = tracker.open("mine", folder, {"a": 2})
    for step in (2, 3, 4):  # from the checkpoint of step 1
        again.log(step, {"loss": 10.0 - step, "tokens": 8})
    again.close()
    (run,) = runs(uri, "mine")
    assert losses(uri, run) == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]
    (folder / "checkpoints.1").mkdir()  # set aside: what follows is trained anew
    anew = tracker.open("mine", folder, {})
    anew.log(1, {"loss": 5.0, "tokens": 8})
    anew.close()
    found = runs(uri, "mine")
    assert sorted(losses(uri, run) for run in found)[1] == [(1, 9.0), (2, 8.0), (3, 7.0), (4, 6.0)]
    assert [(1, 5.0)] in [losses(uri, run) for run in found] and len(found) == 2


class Server(http.server.BaseHTTPRequestHandler):
    """As much of MLflow's REST interface as a tracker asks for; 503 while it is ``away``."""

    away = False
    answers = threading.Event()
    """Not set while the server takes requests and says nothing."""
    answers.set()
    sent: list[Any] = []  # noqa: RUF012  (a constant of the class)

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.answers.wait(PATIENCE)
        call = self.path.split("?")[0].rpartition("/2.0/mlflow/")[2]
        info = {"run_id": "r1", "run_uuid": "r1", "experiment_id": "7", "status": "RUNNING"}
        known: dict[str, Any] = {
            "experiments/get-by-name": {"experiment": {"experiment_id": "7", "name": "easyllm"}},
            "runs/create": {"run": {"info": info, "data": {}}},
        }
        if call == "runs/log-batch" and not self.away:
            self.sent.append(json.loads(body))
        content = json.dumps(known.get(call, {})).encode()
        self.send_response(503 if self.away else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}"
        listening.shutdown()


def test_training_does_not_stop_for_a_server_that_goes_away(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    writer = MLflow(tracking_uri=server).open("mine", tmp_path, {"a": 1})
    writer.log(1, {"loss": 3.0})
    Server.away = True
    writer.log(2, {"loss": 2.0})
    writer.log(3, {"loss": 1.0})
    Server.away = False
    writer.log(4, {"loss": 0.5})
    writer.close()
    found = [
        (metric["step"], metric["value"])
        for batch in Server.sent
        for metric in batch.get("metrics", ())
    ]
    assert found == [(1, 3.0), (2, 2.0), (3, 1.0), (4, 0.5)]
    assert capsys.readouterr().err.count("trying again each step") == 1


def test_a_server_that_is_silent_slows_no_step(server: str, tmp_path: Path) -> None:
    tracker = AsyncTracker("mine", MLflow(tracking_uri=server).open("mine", tmp_path, {"a": 1}))
    before = len(Server.sent)
    Server.answers.clear()
    for step in range(1, 101):
        tracker.log(step, {"loss": 1.0})
    assert len(Server.sent) == before
    Server.answers.set()
    tracker.close()
    found = [m["step"] for batch in Server.sent[before:] for m in batch.get("metrics", ())]
    assert found == list(range(1, 101))


def test_a_server_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    uri = "http://127.0.0.1:9"
    with pytest.raises(UserError, match=f"training.trackers.mine.tracking_uri={uri}"):
        MLflow(tracking_uri=uri).open("mine", tmp_path, {})


def test_a_database_without_what_it_needs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from easyllm.__main__ import main
    from easyllm.trackers import mlflow

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mlflow, "find_spec", lambda name: None)
    uri = f"training.trackers.mlflow.tracking_uri=sqlite:///{tmp_path}/m.db"
    assert main(["+recipe=demo", "+tracker=mlflow", uri]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "training.trackers.mlflow.tracking_uri" in message and "pip install mlflow" in message
