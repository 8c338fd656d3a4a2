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


def test_steps_that_come_again_after_a_kill_are_there_once(tmp_path: Path) -> None:
    first = TensorBoard().open("mine", tmp_path, {})
    for step in (1, 2, 3):
        first.log(step, {"loss": 10.0 - step})
    first.close()
    again = TensorBoard().open("mine", tmp_path, {}, done=1)
    for step in (2, 3, 4):
        again.log(step, {"loss": 20.0 - step})
    again.close()
    found = events(tmp_path / "tensorboard").Scalars("loss")
    assert [(e.step, e.value) for e in found] == [(1, 9.0), (2, 18.0), (3, 17.0), (4, 16.0)]
