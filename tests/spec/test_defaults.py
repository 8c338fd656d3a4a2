"""What a key says where it is not given."""

from __future__ import annotations

from pathlib import Path

from easyllm.spec.defaults import default
from easyllm.spec.problems import ABSENT
from easyllm.spec.schema import flatten, write
from tests.support import run_spec


def test_the_spec_with_nothing_given_is_its_defaults(tmp_path: Path) -> None:
    run = run_spec(tmp_path, {})
    given = {"run_dir", "data.dir", "model.cache", "hardware.device"}
    for key, value in flatten(write(run)).items():
        if key not in given:
            assert default(run, key) == value, key


def test_a_key_without_a_default(tmp_path: Path) -> None:
    lora = {"_target_": "lora", "r": 4}
    run = run_spec(tmp_path, {"training": {"adapter": lora, "freeze": {"low": "a.*"}}})
    assert default(run, "training.adapter.r") == 16
    assert default(run, "training.adapter.targets") == ["all-linear"]
    for key in ("training.adapter._target_", "training.freeze.low", "nope", "model.nope.x",
                "_target_", "seed.x"):  # fmt: skip
        assert default(run, key) is ABSENT, key
