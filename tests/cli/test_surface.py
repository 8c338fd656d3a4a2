"""What the command line gives besides running: the front page, Hydra's flags, sweeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from easyllm import runfile
from easyllm.__main__ import main
from easyllm.cli.library import Library, shipped_folder
from easyllm.spec.schema import flatten, write

RECIPES = Library(shipped_folder()).options("recipe")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def easyllm(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "easyllm", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def test_front_page(folder, capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert len(RECIPES) >= 7
    for name in RECIPES:
        (line,) = [line for line in page.splitlines() if line.startswith(f"  {name} ")]
        assert len(line.split()) > 4, "a recipe says in a line what it is"
    assert "python -m easyllm +recipe=demo" in page
    assert not list(folder.iterdir())


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_is_sound(recipe, folder, capsys):
    text = folder / "conversations.tsv"
    text.write_text("Hello?\tHello.\n")
    words = [f"+recipe={recipe}", "stages=[]"]
    if recipe == "smollm2_pipe":
        words.append(f"data.sources.conversations.path={text}")
    assert main(words) == 0
    assert "the spec is valid" in capsys.readouterr().out
    assert [p.name for p in folder.iterdir()] == [text.name]


@pytest.mark.parametrize(
    "option", [f"{group}={name}" for group in ("model", "hardware", "parallelism")
               for name in Library(shipped_folder()).options(group)]
)  # fmt: skip
def test_every_option_of_every_group_is_sound(option, folder, capsys):
    hardware = [] if option.startswith("hardware") else ["hardware=h100x8"]
    assert main([option, *hardware, "parallelism.global_batch_size=64", "stages=[]"]) == 0


ORIGINAL = {
    "llama13b_pipe": (8, 8), "qwen7b_pipe": (4, 16), "qwen14b_pipe": (8, 8),
    "baichuan13b_pipe": (8, 8),
}  # fmt: skip
"""Pipeline stages and replicas on 64 GPUs, by recipe."""


@pytest.mark.parametrize("recipe", ORIGINAL)
def test_recipes_of_the_original_table(recipe, folder, capsys):
    from easyllm.cli.check import check
    from easyllm.cli.command_line.overrides import read
    from easyllm.cli.compose import compose

    library = Library(shipped_folder())
    run = check(compose(read([f"+recipe={recipe}", "stages=[]"], library), library), library)
    layout, ranks = run.parallelism, run.hardware.ranks
    assert ranks == 64
    assert (layout.stages, layout.replicas(ranks)) == ORIGINAL[recipe]
    assert layout.global_batch_size * run.data.seq_len == 4 * 2**20


PUBLISHED = {
    "llama_7b": 6.74e9, "llama_13b": 13.02e9, "qwen_7b": 7.72e9, "qwen_14b": 14.17e9,
    "qwen2_5_7b": 7.62e9, "baichuan_7b": 7.00e9, "baichuan_13b": 13.26e9,
    "smollm2_135m": 134.5e6, "llama3_8b": 8.03e9, "llama3_70b": 70.55e9, "mistral_7b": 7.25e9,
    "qwen3_8b": 8.19e9, "qwen_1_8b": 1.84e9, "baichuan2_7b": 7.51e9, "baichuan2_13b": 13.90e9,
}  # fmt: skip
"""Parameters that the models' authors state."""


@pytest.mark.parametrize("model", PUBLISHED)
def test_models_have_their_true_dimensions(model):
    from easyllm.runfile import read_config

    config = yaml.safe_load((shipped_folder() / "model" / f"{model}.yaml").read_text())
    run, problems = read_config({"model": config})
    assert not problems
    shape = run.model.family.shape(run.model.config)
    # the biases of Qwen's attention are not counted
    assert shape.parameters == pytest.approx(PUBLISHED[model], rel=0.005)


def test_smoke_leaves_out_what_the_small_model_lacks(folder, capsys):
    """Layer 30 of 40 is not there."""
    words = ["+recipe=llama13b_pipe", "+smoke=cpu", "stages=[]"]
    freeze = ["training.freeze.top=model.layers.3?.*", "training.freeze.first=model.layers.0.*"]
    assert main([*words, *freeze]) == 0
    assert main([*words, "training.freeze.all='*'"]) == 2
    assert "freezes all" in capsys.readouterr().err


def test_smoke_wherever_it_stands(folder, capsys):
    for words in (["+smoke=cpu", "+recipe=llama13b_pipe"], ["+recipe=llama13b_pipe", "+smoke=cpu"]):
        assert main([*words, "stages=[]"]) == 0
        assert "4 ranks: 2 pipeline stages x 2 replicas" in capsys.readouterr().out


def test_cfg_job_prints_the_composed_config(folder):
    done = easyllm("--cfg", "job", "+recipe=demo", "training.steps=7", cwd=folder)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["training"]["steps"] == 7
    assert config["parallelism"]["pipeline_stages"] == 2
    assert not list(folder.iterdir())


def test_cfg_of_a_wrong_spec_is_refused(folder, capsys):
    assert main(["--cfg", "job", "+recipe=demo", "model.pth=1"]) == 2
    assert "did you mean model.path?" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "--info"])
def test_hydras_flags(flag, folder):
    done = easyllm(flag, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "python_docs" in done.stdout
    assert not list(folder.iterdir())


SWEEP = ["-m", "+recipe=demo", "stages=[tokenize]", "data.max_documents=20",
         "data.tokenizer.vocab_size=300"]  # fmt: skip


def test_sweep_goes_on_past_a_refused_point(folder):
    done = easyllm(*SWEEP, "training.optimizer.lr=1e-3,-1,3e-4", cwd=folder)
    assert done.returncode == 1
    assert "training.optimizer.lr = -1" in done.stderr
    assert "sweep: 2 of 3 points done" in done.stderr
    assert "not done: recipe=demo" in done.stderr
    runs = sorted(p.parent for p in folder.glob("runs/demo-*/run.yaml"))
    assert len(runs) == 2
    rates = [yaml.safe_load((run / "run.yaml").read_text())["training"]["optimizer"]["lr"]
             for run in runs]  # fmt: skip
    assert sorted(rates) == [3e-4, 1e-3]
    for run in runs:
        assert json.loads((run / "stages/tokenize.json").read_text())["status"] == "done"
    assert len(list((folder / "runs/stores").iterdir())) == 1, "points share the token store"


def test_sweep_over_recipes_goes_on_past_an_unknown_one(folder):
    words = ["-m", "+recipe=demo,demmo", *SWEEP[2:]]
    done = easyllm(*words, cwd=folder)
    assert done.returncode == 1
    assert "did you mean demo?" in done.stderr
    assert "not done: recipe=demmo" in done.stderr
    assert len(list(folder.glob("runs/demo-*/run.yaml"))) == 1


def test_sweep_of_one_directory_runs_its_first_point(folder):
    done = easyllm(*SWEEP, "seed=1,2", "run_dir=here", cwd=folder)
    assert done.returncode == 1
    assert "holds another run" in " ".join(done.stderr.split())
    assert yaml.safe_load((folder / "here/run.yaml").read_text())["seed"] == 1


def test_users_recipe_reader_and_tracker(folder):
    """A reader class and a recipe of the user's own, with no change to the package."""
    own = folder / "mine"
    (own / "recipe").mkdir(parents=True)
    (own / "my_readers.py").write_text(
        "from dataclasses import dataclass\n"
        "from easyllm.data.sources.readers import FileReader\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Lines(FileReader):\n"
        "    suffixes = ('.txt',)\n"
        "    upper: bool = False\n"
        "    def documents(self, file):\n"
        "        for _, line in self.lines(file):\n"
        "            yield line.upper() if self.upper else line\n"
    )
    (own / "recipe" / "mine.yaml").write_text(
        "# @package _global_\n"
        "defaults: [demo]\n"
        "stages: [tokenize]\n"
        "components: {allow: [my_readers]}\n"
        "data:\n"
        "  tokenizer: {vocab_size: 300}\n"
        "  sources:\n"
        "    python_docs: {_target_: my_readers.Lines, path: lines.txt, upper: true}\n"
    )
    (folder / "lines.txt").write_text("one line\nanother line\n")
    words = ["+recipe=mine", "--config-dir", "mine"]
    done = easyllm(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    record = json.loads(next(folder.glob("runs/*/stages/tokenize.json")).read_text())
    assert record["metrics"]["documents"] == 2
    wrong = easyllm(*words, "data.sources.python_docs.uper=true", cwd=folder)
    assert wrong.returncode == 2
    assert "did you mean data.sources.python_docs.upper?" in wrong.stderr


def test_a_spec_by_hand_may_leave_a_value_to_the_command_line(folder):
    (folder / "texts.txt").write_text("one\n\ntwo\n")
    (folder / "spec.yaml").write_text(
        "stages: [tokenize]\n"
        "data: {sources: {texts: {_target_: easyllm.data.sources.readers.Text}}}\n"
        "hardware: {device: cpu}\n"
    )
    words = ["spec.yaml", "data.tokenizer=ByteLevelBPE", "data.tokenizer.vocab_size=300"]
    done = easyllm(*words, "data.sources.texts.path=texts.txt", "stages=[]", cwd=folder)
    assert done.returncode == 0, done.stderr
    done = easyllm(*words, "stages=[]", cwd=folder)
    assert done.returncode == 2
    assert "data.sources.texts.path" in done.stderr


def test_same_start_from_any_environment(folder):
    """A locale without UTF-8 and no home must not matter."""
    env = {"PATH": os.environ["PATH"], "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "easyllm", "+recipe=demo", "stages=[]"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_cfg_job_shows_every_key(folder, capsys):
    """Defaults included, and ``???`` for what must be given: what it prints is the same run."""
    words = ["+recipe=qwen3_8b", "training.optimizer.lr=1e-4", "model.overrides.rope_theta=1e6"]
    assert main(["--cfg", "job", *words]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    run, problems = runfile.read_config(shown)
    assert not problems and flatten(write(run)) == flatten(shown)
    assert run.training.optimizer.lr == 1e-4 and run.model.overrides == {"rope_theta": 1e6}
    assert main(["--cfg", "job", "--package", "training.optimizer", *words]) == 0
    part = yaml.safe_load(capsys.readouterr().out)
    assert part == shown["training"]["optimizer"]
    assert (
        main(["--cfg", "job", "+data.sources.mine._target_=JsonLines", "-p", "data.sources"]) == 2
    )
    capsys.readouterr()
    assert main(["--cfg=job", "data.sources.mine._target_=jsonl", "-p", "data.sources"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["mine"]["path"] == "???"


def test_cfg_job_keeps_interpolations_unless_asked(folder, capsys):
    words = ["-c", "job", "+recipe=demo", "name=${data.seq_len}x", "-p", "name"]
    assert main(words) == 0
    assert "${data.seq_len}x" in capsys.readouterr().out
    assert main([*words, "--resolve"]) == 0
    assert "256x" in capsys.readouterr().out
    words = ["name=easyllm.training.schedules.Linear", "training.schedule={_target_: '${name}'}"]
    assert main(["--cfg", "job", "+recipe=demo", *words, "-p", "training.schedule"]) == 0
    assert "_target_: ${name}" in capsys.readouterr().out
