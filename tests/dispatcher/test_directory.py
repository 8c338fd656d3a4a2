"""Which changes a directory with training in it takes, and what is said of the others."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from easyllm import runfile
from easyllm.dispatcher import directory, records
from easyllm.files import read_record, write_record
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from tests.support import merged, run_spec

ZERO = {"_target_": "easyllm.parallelism.layouts.Zero"}
TRAINED: dict[str, Any] = {
    "stages": ["train"],
    "parallelism": {**ZERO, "zero_stage": 3},
    "hardware": {"devices_per_node": 2},
    "training": {"steps": 4, "optimizer": {"lr": 1e-3}},
}


def asked(tmp_path: Path, over: dict[str, Any]) -> RunSpec:
    return run_spec(tmp_path, merged(TRAINED, over))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A folder with a run that was interrupted in training, a checkpoint saved."""
    run = asked(tmp_path, {})
    paths = RunPaths(run)
    (paths.checkpoints / "step-00000002").mkdir(parents=True)
    runfile.save(run, paths.spec)
    records.save(run, load("train"), records.INTERRUPTED, datetime.now(UTC))
    return tmp_path


@pytest.mark.parametrize(
    "over",
    [
        {"parallelism": {"zero_stage": 0}},
        {"parallelism": {"micro_batch_size": 2}, "hardware": {"devices_per_node": 1}},
        {"training": {"steps": 9, "checkpoint": {"every": 3}}},
        {"training": {"resume": "weights", "optimizer": {"lr": 1e-2}}},
        {"training": {"resume": "never", "gradient_clipping": 3.0}},
    ],
)
def test_training_goes_on_with(trained: Path, over: dict[str, Any]) -> None:
    assert directory.problems(asked(trained, over)) == []


def test_settings_that_decide_the_losses_are_refused_with_what_to_type(trained: Path) -> None:
    over = {"training": {"optimizer": {"lr": 1e-2}}, "parallelism": {"zero_stage": 1}}
    (told,) = directory.problems(asked(trained, over))
    assert told.key == "run_dir"
    assert "differs in training.optimizer.lr (0.001 -> 0.01)" in told.message
    assert "zero_stage" not in told.message
    assert "training.resume=weights" in told.remedy


def test_another_model_is_another_run(trained: Path) -> None:
    (told,) = directory.problems(asked(trained, {"seed": 7, "training": {"resume": "weights"}}))
    assert "seed (42 -> 7)" in told.message
    assert "training.resume" not in told.remedy


def forget(folder: Path, *keys: str) -> None:
    """Make the run's record one of before there were these keys."""
    file = RunPaths(asked(folder, {})).record("train")
    record = read_record(file)
    for key in keys:
        del record["spec"][key]
    write_record(file, record)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model.revision", "v1"), ("training.optimizer.eps", 1e-3), ("seed", 7),
     ("training.evaluate.fraction", 0.5)],
)  # fmt: skip
def test_a_key_that_a_record_lacks_had_its_default(trained: Path, key: str, value: Any) -> None:
    """The field is newer than the record."""
    forget(trained, key)
    assert directory.problems(asked(trained, {})) == []
    run, stage = asked(trained, {}), load("train")
    record = records.read(run, stage)
    assert record is not None and records.differences(run, stage, record) == {}
    over: Any = value
    for name in reversed(key.split(".")):
        over = {name: over}
    (told,) = directory.problems(asked(trained, over))
    assert f"differs in {key} (" in told.message and f" -> {value})" in told.message
    assert records.changed(asked(trained, over), stage, {**record, "status": "done"}) == (
        "its keys have changed"
    )


def test_a_component_of_a_new_field_had_its_default(trained: Path) -> None:
    run = asked(trained, {})
    keys = [key for key in records.keys_read(run, load("train")) if ".schedule." in key]
    assert "training.schedule._target_" in keys
    forget(trained, *keys)
    assert directory.problems(run) == []
    other = {"training": {"schedule": {"_target_": "linear"}}}
    (told,) = directory.problems(asked(trained, other))
    assert "differs in training.schedule._target_ (" in told.message


def test_a_record_without_keys_says_nothing(trained: Path) -> None:
    run = asked(trained, {})
    forget(trained, *records.keys_read(run, load("train")))
    (told,) = directory.problems(run)
    assert "seed (nothing -> 42)" in told.message
