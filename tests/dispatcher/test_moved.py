"""A trained run is used: from another place, for other exports and answers, and stays itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from easyllm.__main__ import main

ASK = ["stages=[infer]", "inference.prompts={sea: The sea}", "inference.sampling.max_tokens=3"]


def stages_of(run: Path) -> list[str]:
    stages = yaml.safe_load((run / "run.yaml").read_text())["stages"]
    assert isinstance(stages, list)
    return stages


def test_a_copy_is_a_run_of_its_own(run: Path, trained: Path, capfd: pytest.CaptureFixture[str]):
    before = {file: file.stat().st_mtime_ns for file in trained.rglob("*") if file.is_file()}
    assert main([str(run / "run.yaml")]) == 0
    said = capfd.readouterr().err
    assert said.count("up to date; skipped") == 3
    assert yaml.safe_load((run / "run.yaml").read_text())["run_dir"] == str(run.absolute())
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_it_answers_under_another_name(run: Path, capfd: pytest.CaptureFixture[str]):
    moved = run.rename("mine")
    assert main([str(moved / "run.yaml"), *ASK]) == 0, "and not with the model under the adapter"
    (made,) = Path.cwd().glob("**/results.jsonl")
    assert "sea" in made.read_text()
    assert stages_of(moved) == ["tokenize", "train", "export"], "what is said of the training"
    assert main([str(moved / "run.yaml")]) == 0
    assert "train: up to date" in capfd.readouterr().err


def test_an_adapter_beside_the_merged_model(run: Path, capfd: pytest.CaptureFixture[str]):
    words = [str(run / "run.yaml"), "stages=[export]"]
    assert main([*words, "export.adapter=adapter"]) == 0
    assert (run / "adapter/adapter_config.json").is_file()
    assert (run / "export/config.json").is_file()
    assert main([*words, "export.dtype=float16"]) == 2
    assert "give export.output=<another place> to keep both" in capfd.readouterr().err
    assert main([*words, "export.dtype=float16", "export.output=half"]) == 0
    assert Path("half/config.json").is_file()
    assert stages_of(run) == ["tokenize", "train", "export"]


def test_other_prompts_are_answered_by_what_it_trained(
    run: Path, capfd: pytest.CaptureFixture[str]
):
    """In a directory of their own, beside the run's."""
    words = [str(run / "run.yaml"), *ASK]
    assert main(words) == 0
    (made,) = Path.cwd().glob("copy/runs/*/inference/results.jsonl")
    other = made.parents[1]
    assert other != run
    asked = yaml.safe_load((other / "run.yaml").read_text())["inference"]["model"]
    assert asked == str(run.absolute() / "export")
    shutil.rmtree(run / "export")
    capfd.readouterr()
    for more in ([], ["seed=1"]):
        assert main([*words, *more]) == 2, "and not by the model under the adapter"
    said = " ".join(capfd.readouterr().err.split())
    assert "the run's trained model is not exported" in said and "add export to stages" in said


def test_its_own_prompts_are_answered_in_its_directory(
    run: Path, capfd: pytest.CaptureFixture[str]
):
    words = [str(run / "run.yaml"), "stages=[infer]"]
    for _ in range(2):
        capfd.readouterr()
        assert main(words) == 0
    assert "infer: up to date" in capfd.readouterr().err
    assert (run / "inference/results.jsonl").is_file()
    assert [path.name for path in run.parent.glob("demo-*")] == [run.name]
