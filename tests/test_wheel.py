"""The built wheel in another environment, run from an empty folder."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(command: list[str], cwd: Path) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that has the wheel and, from this one, its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)], ROOT)
    (wheel,) = folder.glob("*.whl")
    run([sys.executable, "-m", "venv", "env"], folder)
    python = folder / "env/bin/python"
    run([str(python), "-m", "pip", "install", "-q", "--no-deps", "--no-index", str(wheel)], folder)
    # a .pth file adds a folder without reading the .pth files in it, so that this
    # environment's own easyllm, which is such a file, stays out
    site = next((folder / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python


def test_the_package_is_the_wheels(python, tmp_path):
    where = run([str(python), "-c", "import easyllm; print(easyllm.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(python.parent.parent)


def test_vllm_finds_the_plugin(python, tmp_path):
    pytest.importorskip("vllm")
    script = (
        "from vllm.plugins import load_general_plugins\n"
        "from vllm import ModelRegistry\n"
        "import easyllm.inference.vllm.plugin as plugin\n"
        "load_general_plugins()\n"
        "assert {*plugin.MODELS} <= {*ModelRegistry.get_supported_archs()}\n"
        "print(plugin.__file__)"
    )
    where = run([str(python), "-c", script], tmp_path).splitlines()[-1]
    assert Path(where).is_relative_to(python.parent.parent)


@pytest.mark.slow
def test_demo_from_an_empty_folder(python, tmp_path):
    run([str(python), "-m", "easyllm", "+recipe=demo", "training.steps=3"], tmp_path)
    (folder,) = (p.parent for p in tmp_path.glob("runs/*/run.yaml"))
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "loss" in s] == [1, 2, 3]
    assert (folder / "export/model.safetensors").stat().st_size > 1e6
    for stage in ("tokenize", "shuffle", "repartition", "train", "export", "infer"):
        assert json.loads((folder / f"stages/{stage}.json").read_text())["status"] == "done"


def test_recipe_and_reader_of_the_users_own(python, tmp_path):
    own = tmp_path / "mine"
    (own / "recipe").mkdir(parents=True)
    (own / "poems.py").write_text(
        "from dataclasses import dataclass\n"
        "from easyllm.data.sources.readers import FileReader\n\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Verses(FileReader):\n"
        '    """One document a line."""\n\n'
        '    suffixes = (".txt",)\n\n'
        "    def documents(self, file):\n"
        "        for _, line in self.lines(file):\n"
        "            yield line\n"
    )
    (own / "recipe" / "verses.yaml").write_text(
        "# @package _global_\n"
        "# Verses, a line each.\n"
        "defaults: [demo]\n"
        "name: verses\n"
        "stages: [tokenize, shuffle, repartition]\n"
        "components: {allow: [poems]}\n"
        "data: {sources: {python_docs: {_target_: poems.Verses, path: verses.txt}}}\n"
    )
    lines = [f"Line {n} of a long poem about the sea and the sky." for n in range(100)]
    (tmp_path / "verses.txt").write_text("\n".join(lines))
    run([str(python), "-m", "easyllm", "+recipe=verses", "--config-dir", "mine"], tmp_path)
    record = json.loads(next(tmp_path.glob("runs/verses-*/stages/repartition.json")).read_text())
    assert record["metrics"]["documents"] == 100
