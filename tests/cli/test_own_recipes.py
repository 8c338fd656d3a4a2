"""What is wrong with recipes and components of one's own, and where a value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyllm.__main__ import main


@pytest.fixture
def own(empty: Path) -> Path:
    folder = empty / "mine"
    (folder / "recipe").mkdir(parents=True)
    return folder


def write(folder: Path, name: str, text: str) -> None:
    (folder / "recipe" / f"{name}.yaml").write_text(text)


def test_misspelt_key_in_a_recipe(own, capsys):
    write(own, "mine", "# @package _global_\ndefaults: [demo]\ntraining:\n  stepz: 3\n")
    assert main(["+recipe=mine", "--config-dir", str(own)]) == 2
    message = capsys.readouterr().err
    assert "training.stepz = 3" in message
    assert str(own / "recipe" / "mine.yaml") in message
    assert "did you mean training.steps?" in message


def test_value_of_a_shipped_recipe_is_traced_to_it(empty, capsys):
    assert main(["+recipe=demo", "hardware.devices_per_node=3"]) == 2
    message = capsys.readouterr().err
    assert "parallelism.pipeline_stages = 2   (recipe/demo.yaml)" in message


def test_recipe_without_its_package_line(own, capsys):
    write(own, "mine", "training:\n  steps: 3\n")
    assert main(["+recipe=mine", "--config-dir", str(own)]) == 2
    assert "# @package _global_" in capsys.readouterr().err


def test_recipe_that_is_not_yaml(own, capsys):
    write(own, "mine", "# @package _global_\ntraining: [1\n")
    assert main(["+recipe=mine", "--config-dir", str(own)]) == 2
    message = capsys.readouterr().err
    assert "is not YAML" in message
    assert "Traceback" not in message


def test_recipe_with_an_absent_default(own, capsys):
    write(own, "mine", "# @package _global_\ndefaults: [demmo]\n")
    assert main(["+recipe=mine", "--config-dir", str(own)]) == 2
    assert "did you mean demo?" in capsys.readouterr().err


def test_shipped_name_in_a_users_folder(own, capsys):
    write(own, "demo", "# @package _global_\ntraining:\n  steps: 3\n")
    assert main(["+recipe=demo", "--config-dir", str(own)]) == 2
    message = capsys.readouterr().err
    assert str(own / "recipe" / "demo.yaml") in message
    assert "shipped" in message


def test_absent_config_dir(empty, capsys):
    assert main(["+recipe=demo", "--config-dir", "nowhere"]) == 2
    assert "is not a folder" in capsys.readouterr().err


def test_users_reader_that_cannot_be_imported(own, capsys):
    (own / "broken_readers.py").write_text("import nothing_of_that_name\n")
    words = ["components.allow=[broken_readers]", "data.sources.x._target_=broken_readers.X"]
    assert main(["+recipe=demo", "--config-dir", str(own), *words]) == 2
    message = capsys.readouterr().err
    assert "nothing_of_that_name" in message
    assert "Traceback" not in message
