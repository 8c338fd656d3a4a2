"""What is damaged in a run's directory is noticed: made again by the same command, or refused."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest

from easyllm.__main__ import main
from tests.dispatcher.conftest import ADAPTED

Said = pytest.CaptureFixture[str]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.mark.parametrize("harm", ["cut", "gone"])
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json"])
def test_an_export(run: Path, file: str, harm: str, capfd: Said) -> None:
    before = contents(run / "export")
    other = run / "export/notes.txt"
    other.write_text("mine")
    assert main([str(run / "run.yaml")]) == 0
    assert other.is_file(), "what a user has put there makes no other export"
    victim = run / "export" / file
    victim.unlink() if harm == "gone" else victim.write_bytes(victim.read_bytes()[:-9])
    left = run / f".export.{platform.node()}-4194999.part"  # of a process that cannot be
    ours = run / f".export.{platform.node()}-{os.getpid()}.part"
    for folder in (left, ours):
        folder.mkdir()
    capfd.readouterr()
    assert main([str(run / "run.yaml")]) == 0
    assert capfd.readouterr().err.count("up to date; skipped") == 2
    assert contents(run / "export") == before
    assert ours.exists() and not left.exists()


def test_the_only_checkpoint(run: Path, capfd: Said) -> None:
    (weights,) = run.glob("checkpoints/step-00000001/weights/*.safetensors")
    weights.unlink()
    assert main([str(run / "run.yaml")]) == 1
    said = capfd.readouterr().err
    assert f"weights/{weights.name} is not there" in said and "give training.resume=never" in said


def test_run_yaml(trained: Path, monkeypatch: pytest.MonkeyPatch, capfd: Said) -> None:
    """The command that made the run goes on with it, and writes another one."""
    monkeypatch.chdir(trained)
    (file,) = Path("runs").glob("*/run.yaml")
    before = file.read_text()
    file.write_text(before[: len(before) // 2].rstrip() + "\n  [: }")
    assert main([str(file)]) == 2
    assert "is not YAML in line" in " ".join(capfd.readouterr().err.split())
    assert main(ADAPTED) == 0
    assert capfd.readouterr().err.count("up to date; skipped") == 3
    assert file.read_text() == before
    file.unlink()
    assert main(ADAPTED) == 0
    assert capfd.readouterr().err.count("up to date; skipped") == 3
    assert file.read_text() == before


def test_a_damaged_record_is_made_again(run: Path, capfd: Said) -> None:
    """Nothing of it is believed: not that another run lies there either."""
    before = contents(run / "export")
    record = run / "stages/train.json"
    record.write_text(record.read_text().replace('"seed": ', '"seed": 1'))
    assert main([str(run / "run.yaml")]) == 0
    assert "train …" in capfd.readouterr().err
    assert contents(run / "export") == before
    assert main([str(run / "run.yaml")]) == 0
    assert capfd.readouterr().err.count("up to date; skipped") == 3


@pytest.mark.parametrize("harm", ["altered", "gone"])
def test_metrics_that_are_lost_are_said(run: Path, harm: str, capfd: Said) -> None:
    file = run / "metrics.jsonl"
    if harm == "gone":
        file.unlink()
    else:
        file.write_text(file.read_text().replace('"loss": ', '"loss": 1'))
    assert main([str(run / "run.yaml")]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert f"{file}: the metrics of step 1 are lost" in said
