"""What is wrong with recipes and components of one's own, and where a value comes from."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyllm.__main__ import main
from easyllm.cli.check import check
from easyllm.cli.command_line.overrides import read
from easyllm.cli.compose import complete, compose
from easyllm.cli.library import Library, shipped_folder


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


DEFAULTS = {
    "override model: tiny": ("means recipe/model", "write 'override /model: tiny'"),
    "model: tiny": ("means recipe/model", "write 'override /model: tiny'"),
    "/model: tiny": ("model is chosen already", "write 'override /model: tiny'"),
    "override /modle: tiny": ("there is no group modle", "did you mean model?"),
    "override /model: tinny": ("there is no model/tinny.yaml", "did you mean tiny?"),
    "override /model: [tiny, qwen_7b]": ("is several options", "give one"),
    "override /tracker: wandb": ("no tracker is chosen", "write '/tracker: wandb'"),
    "mine": ("is the file itself", "leave it out"),
    "[a]": ("is neither a name", "begin each entry with its own '-'"),
    "{demo: a, b: c}": ("is neither a name", "begin each entry with its own '-'"),
}


@pytest.mark.parametrize("entry", DEFAULTS)
def test_an_entry_of_defaults(entry, own, capsys):
    """By the file, the entry and what to write in its place."""
    write(own, "mine", f"# @package _global_\ndefaults:\n- {entry}\n")
    assert main(["+recipe=mine", "--config-dir", str(own), "stages=[]"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"defaults in {own / 'recipe' / 'mine.yaml'} = " in message
    for part in DEFAULTS[entry]:
        assert part in message, message


WRONG = {
    "5\n": "holds no map of keys write <key>: <value> lines",
    "# @package _global_\ndefaults: 5\n": "its defaults are no list write defaults: [<name>",
    "# @package _global_\nnull: 5\n": "has a key or a value that a spec cannot hold",
    "# @package _global_\nname: &a [*a]\n": "holds maps or lists within each other without end",
    "# @package _global_\nx: " + "[" * 500 + "]" * 500: "within each other without end",
    "# @package _global_\nname: 1_0\n": "must be text quote it: '1_0'",
    "# @package _global_\nname: ${nope}\n": "name = ${nope} ({file}) no key nope is given",
    "training: {steps: 3}\n": "recipe ({file}) a recipe's keys must be at the top",
}


@pytest.mark.parametrize("text", WRONG, ids=[text[:30] for text in WRONG])
def test_a_recipe_that_is_none(text, own, capsys):
    write(own, "mine", text)
    assert main(["+recipe=mine", "--config-dir", str(own), "stages=[]"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert WRONG[text].replace("{file}", str(own / "recipe" / "mine.yaml")) in message


def test_a_recipe_by_its_path(own, capsys):
    """As by its name; a shipped one too. Elsewhere a recipe is not found by Hydra."""
    write(own, "mine", "# @package _global_\ndefaults: [demo]\nname: mine\n")
    assert main(["mine/recipe/mine.yaml", "stages=[]", "training.steps=3"]) == 0
    assert "mine: the spec is valid" in capsys.readouterr().out
    assert main([str(shipped_folder() / "recipe" / "demo.yaml"), "stages=[]"]) == 0
    assert "demo: the spec is valid" in capsys.readouterr().out
    (own / "recipe" / "mine.yaml").rename("mine.yaml")
    assert main(["mine.yaml", "stages=[]"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"move it to {own.parent / 'recipe' / 'mine.yaml'}" in message


def test_hardware_of_the_command_line_wins_over_a_recipe(own):
    """Over what the group gives; other keys of the recipe stay, and words win over both."""
    write(
        own, "mine",
        "# @package _global_\ndefaults: [demo]\nparallelism: {global_batch_size: 64}\n"
        "hardware: {devices_per_node: 4, timeout_s: 60}\n",
    )  # fmt: skip

    def hardware(*words: str) -> tuple[int, str, float]:
        library = Library(shipped_folder(), own)
        overrides = complete(read(["+recipe=mine", "stages=[]", *words], library), library)
        found = check(compose(overrides, library), library).hardware
        return found.devices_per_node, found.device, found.timeout_s

    assert hardware() == (4, "cpu", 60)
    assert hardware("hardware=h100x8") == (8, "cuda", 60)
    assert hardware("hardware.devices_per_node=2", "hardware=h100x8") == (2, "cuda", 60)
