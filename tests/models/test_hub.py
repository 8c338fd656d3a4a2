"""A model is fetched from a hub before ranks are started, from a small hub of our own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from easyllm.errors import WrongValue
from easyllm.models import source, tensor_files
from easyllm.stages import load
from tests.hub import NAME, Hub, unreachable
from tests.inference.small import save_model
from tests.support import run_spec

OLD, NEW = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    commits = {OLD: save_model(tmp_path / "old"), NEW: save_model(tmp_path / "new", chat=True)}
    with Hub(commits, NEW, tmp_path / "cache").running(monkeypatch) as hub:
        hub.tags["v1"] = OLD
        yield hub


@pytest.mark.parametrize("revision", [None, OLD, "v1"])
@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_training_has_its_model_before_its_ranks(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: str, revision: str | None
) -> None:
    run = run_spec(tmp_path, {"model": {"path": NAME, "init": init, "revision": revision}})
    load("train").prepare(run)
    weights = init == "pretrained"
    assert "config.json" in hub.sent and ("model.safetensors" in hub.sent) == weights
    # the ranks find it without the hub
    unreachable(monkeypatch)
    found = source.folder(NAME, tmp_path, with_weights=weights, revision=revision)
    expected = NEW if revision is None else OLD
    assert (found.name, bool(tensor_files.paths(found))) == (expected, weights)


def test_a_revisions_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub and, where it does not answer, by its cache."""
    assert (source.commit(NAME), source.commit(NAME, "v1")) == (NEW, OLD)
    assert source.commit(NAME, OLD) == OLD
    unreachable(monkeypatch)
    hub.main = OLD
    assert (source.commit(NAME), source.commit(NAME, "v1")) == (NEW, OLD)
    found = source.snapshot(NAME, "v1")
    assert found == source.snapshot(NAME, OLD) and found and found.name == OLD
    assert source.snapshot(NAME, "v2") is None


@pytest.mark.parametrize("revision", ["v2", "d" * 40])
def test_a_revision_that_is_not_there(hub: Hub, tmp_path: Path, revision: str) -> None:
    with pytest.raises(WrongValue, match=f"model.revision={revision}: some/model has no such"):
        source.folder(NAME, tmp_path, revision=revision)
