"""TensorBoard's event files, read back."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from easyllm.trackers.tensorboard import TensorBoard


def events(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def test_numbers_by_step_and_the_settings(tmp_path: Path) -> None:
    writer = TensorBoard().open("mine", tmp_path, {"training.steps": 2})
    writer.log(1, {"loss": 3.5, "tokens": 10, "note": "text is left out", "mfu": None})
    writer.log(2, {"loss": 2.25, "tokens": 20})
    writer.close()
    found = events(tmp_path / "tensorboard")
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(1, 3.5), (2, 2.25)]
    assert [e.value for e in found.Scalars("tokens")] == [10, 20]
    assert set(found.Tags()["scalars"]) == {"loss", "tokens"}
    (panel,) = found.Tags()["tensors"]
    assert panel.startswith("mine")
    assert b"training.steps: 2" in found.Tensors(panel)[0].tensor_proto.string_val[0]


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    writer = TensorBoard(folder=str(folder)).open("mine", tmp_path / "run", {})
    writer.log(1, {"loss": 1.0})
    writer.close()
    assert events(folder).Tags()["scalars"] == ["loss"]
    assert not (tmp_path / "run").exists()
