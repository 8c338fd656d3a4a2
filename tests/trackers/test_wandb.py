"""Weights & Biases without its server: the file it would send, read back."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyllm.trackers.async_tracker import AsyncTracker
from easyllm.trackers.wandb import WandB


def test_numbers_by_step(tmp_path: Path) -> None:
    """As training feeds it, by a thread."""
    writer = AsyncTracker(
        "mine", WandB(mode="offline").open("mine", tmp_path, {"training.steps": 2})
    )
    writer.log(1, {"loss": 3.625, "note": "text is left out", "mfu": None})
    writer.log(2, {"loss": 2.375})
    writer.close()
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    sent = file.read_bytes()
    for part in (b"loss", b"3.625", b"2.375", b"training.steps"):
        assert part in sent
    for part in (b"text is left out", b"mfu"):
        assert part not in sent


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard", "mlflow"])
def test_without_its_package_a_tracker_is_refused(
    tracker: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from easyllm.__main__ import main
    from easyllm.preflight import machine

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert main(["+recipe=demo", f"+tracker={tracker}"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"training.trackers.{tracker}._target_" in message
    assert f"pip install 'easyllm[{tracker}]'" in message
