"""Where a run.yaml that was moved with its directory finds what was moved with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyllm.cli.relocation import relocated


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run in ``new/runs/mine``, a store beside it."""
    for folder in ("runs/mine/stages", "runs/stores/abc", "model"):
        (tmp_path / "new" / folder).mkdir(parents=True)
    return tmp_path / "new/runs/mine"


def config(root: Path, name: str = "mine") -> dict[str, Any]:
    runs = root / "runs"
    return {
        "run_dir": str(runs / name),
        "data": {"dir": str(runs / "stores/abc"), "max_documents": 3},
        "model": {"cache": str(runs / "models"), "path": str(root / "model")},
    }


def test_what_was_moved_along_is_found(run: Path, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    found = relocated(config(old), run / "run.yaml")
    cache = {"cache": str(old / "runs/models")}  # which is not there, and is made where it was
    assert found == {**config(new), "model": {**config(new)["model"], **cache}}


def test_what_stayed_is_taken_from_there(run: Path, tmp_path: Path) -> None:
    (tmp_path / "old/runs/stores/abc").mkdir(parents=True)
    found = relocated(config(tmp_path / "old"), run / "run.yaml")
    assert found["run_dir"] == str(run)
    assert found["data"]["dir"] == str(tmp_path / "old/runs/stores/abc")


def test_a_renamed_directory(run: Path, tmp_path: Path) -> None:
    written = config(tmp_path / "new", "before")
    assert relocated(written, run / "run.yaml") == config(tmp_path / "new")


def test_what_was_not_moved_stays_as_it_is(run: Path, tmp_path: Path) -> None:
    there = config(tmp_path / "new")
    assert relocated(there, run / "run.yaml") == there
    (tmp_path / "link").symlink_to(tmp_path / "new")
    linked = config(tmp_path / "link")
    assert relocated(linked, run / "run.yaml") == linked
    by_hand = config(tmp_path / "old")
    assert relocated(by_hand, tmp_path / "new/runs/run.yaml") == by_hand
    assert relocated({"run_dir": "mine"}, run / "run.yaml") == {"run_dir": "mine"}
