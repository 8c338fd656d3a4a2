"""A trained run that the tests of this room use."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from easyllm.__main__ import main
from tests.dispatcher.test_run import TRAINED

ADAPTED = [*(word for word in TRAINED if "vocab_size" not in word), "training.steps=1",
           "training.adapter=lora", "training.adapter.r=2", "model=from_path",
           "model.path=base/export", "data.tokenizer=pretrained",
           "data.tokenizer.path=base/export"]  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``runs/<name>-<hash>`` and the store that it was trained on."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main([*TRAINED, "training.steps=0", "run_dir=base", "data.dir=base/store"]) == 0
        assert main(ADAPTED) == 0
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run in a copy of that folder, in which the one it was made in is not known."""
    shutil.copytree(trained / "runs", tmp_path / "copy/runs")
    monkeypatch.chdir(tmp_path)
    (spec,) = Path("copy/runs").glob("*/run.yaml")  # the model under the adapter stays there
    return spec.parent
