"""A run's directory: the same command goes on, another run stays out, nothing is half-written."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from easyllm.__main__ import main
from tests.support import PATIENCE, wait_for

DATA = ["+recipe=demo", "stages=[tokenize,shuffle,repartition]", "data.max_documents=20",
        "data.tokenizer.vocab_size=300"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def runs(folder: Path) -> list[Path]:
    return sorted(p.parent for p in folder.glob("runs/*/run.yaml"))


def record(run: Path, stage: str) -> dict:
    return json.loads((run / "stages" / f"{stage}.json").read_text())


def test_same_command_passes_finished_stages_over(folder, capfd):
    assert main(DATA) == 0
    (run,) = runs(folder)
    first = record(run, "shuffle")
    assert first["status"] == "done"
    assert first["seconds"] > 0
    assert first["metrics"]["documents"] == 20
    assert all("absent" not in value for value in first["inputs"].values())
    assert first["outputs"]
    capfd.readouterr()
    assert main(DATA) == 0
    assert runs(folder) == [run]
    assert record(run, "shuffle") == first
    assert capfd.readouterr().err.count("up to date; skipped") == 3


def test_stages_can_be_run_one_by_one(folder):
    for stages in ("[tokenize]", "[shuffle]", "[tokenize,shuffle,repartition]"):
        assert main([*DATA, f"stages={stages}"]) == 0
    (run,) = runs(folder)
    assert record(run, "repartition")["status"] == "done"


def test_other_values_are_another_run_and_share_the_store(folder):
    assert main(DATA) == 0
    assert main([*DATA, "training.optimizer.lr=1e-5"]) == 0
    assert len(runs(folder)) == 2
    assert len(list((folder / "runs/stores").iterdir())) == 1
    assert main([*DATA, "data.max_documents=21"]) == 0
    assert len(list((folder / "runs/stores").iterdir())) == 2


def test_changed_text_is_another_run(folder):
    text = folder / "mine.txt"
    words = [*DATA, "data=text", "data.sources.text.path=mine.txt"]
    text.write_text("\n\n".join(f"Document {n} of the first." for n in range(30)))
    assert main(words) == 0
    text.write_text("\n\n".join(f"Document {n} of the second." for n in range(30)))
    assert main(words) == 0
    assert len(runs(folder)) == 2


def test_lost_output_is_made_again(folder, capfd):
    assert main(DATA) == 0
    manifest = next(folder.glob("runs/stores/*/shuffled/manifest.json"))
    manifest.unlink()
    assert main(DATA) == 0
    assert manifest.exists()


def test_run_dir_of_another_spec_is_refused(folder, capsys):
    assert main([*DATA, "run_dir=here"]) == 0
    before = (folder / "here/run.yaml").read_bytes()
    assert main([*DATA, "run_dir=here", "seed=7"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "run_dir" in message
    assert "seed (42 -> 7)" in message
    assert (folder / "here/run.yaml").read_bytes() == before


def test_run_dir_of_another_spec_is_taken_where_nothing_done_can_change(folder):
    """What only later stages read may change as long as they have not run."""
    assert main([*DATA, "run_dir=here"]) == 0
    assert main([*DATA, "run_dir=here", "inference.sampling.max_tokens=5"]) == 0


def test_run_dir_with_other_files_is_refused(folder, capsys):
    (folder / "here").mkdir()
    (folder / "here" / "thesis.txt").write_text("…")
    assert main([*DATA, "run_dir=here"]) == 2
    assert "holds files but no run" in capsys.readouterr().err
    assert [p.name for p in (folder / "here").iterdir()] == ["thesis.txt"]


def test_run_yaml_repeats_the_run_from_elsewhere(folder, monkeypatch, capfd):
    (folder / "mine.txt").write_text("\n\n".join(f"Document {n}." for n in range(30)))
    assert main([*DATA, "data=text", "data.sources.text.path=mine.txt"]) == 0
    (run,) = runs(folder)
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    capfd.readouterr()
    assert main([str(run / "run.yaml")]) == 0
    assert capfd.readouterr().err.count("up to date; skipped") == 3
    assert main([str(run / "run.yaml"), "training.steps=ten"]) == 2
    message = capfd.readouterr().err
    assert "training.steps = ten   (command line)" in message
    assert main([str(run / "run.yaml"), "seed=7"]) == 0
    assert len(runs(folder)) == 2, "another seed is another run, beside the first"
    assert not list(elsewhere.iterdir())


def test_run_yaml_with_a_misspelt_key_is_refused(folder, capsys):
    assert main(DATA) == 0
    (run,) = runs(folder)
    file = run / "run.yaml"
    file.write_text(file.read_text().replace("seq_len:", "seq_length:"))
    assert main([str(file)]) == 2
    message = capsys.readouterr().err
    assert "data.seq_length" in message
    assert "run.yaml" in message


def test_failed_stage_is_recorded_and_tried_again(folder, capfd):
    text = folder / "mine.jsonl"
    words = [*DATA, "data=jsonl", "data.sources.jsonl.path=mine.jsonl", "run_dir=here"]
    good = "".join(json.dumps({"text": f"Document {n}."}) + "\n" for n in range(30))
    text.write_text(good + "{broken\n" + good)
    assert main([*words, "data.max_documents=null", "data.max_bad_records=0"]) == 1
    failed = record(folder / "here", "tokenize")
    assert failed["status"] == "failed"
    assert "line 31" in failed["error"]
    message = capfd.readouterr().err
    assert "line 31" in message
    assert "Traceback" not in message
    assert not (folder / "here/stages/shuffle.json").exists()


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "easyllm", *words]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def slow_source(folder: Path) -> list[str]:
    """A reader of the user's own that takes its time, so that a run can be caught at work."""
    own = folder / "mine"
    own.mkdir()
    (own / "slow_reader.py").write_text(
        "import time\n"
        "from dataclasses import dataclass\n"
        "from easyllm.data.sources.readers import PythonDocs\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Slow(PythonDocs):\n"
        "    def documents(self, file):\n"
        "        for document in super().documents(file):\n"
        "            time.sleep(2)\n"
        "            yield document\n"
    )
    return [*DATA, "--config-dir", "mine", "components.allow=[slow_reader]", "run_dir=here",
            "data.sources.python_docs._target_=slow_reader.Slow"]  # fmt: skip


def descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


@pytest.mark.parametrize(
    "number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 75)], ids=["ctrl-c", "sigterm"]
)
def test_signal_ends_every_process_and_is_recorded(folder, number, status):
    import psutil

    process = start(*slow_source(folder))
    wait_for(lambda: any((folder / "runs").glob("stores/*/tokens.lock")))  # it is at work
    wait_for(lambda: descendants(process.pid))
    children = descendants(process.pid)
    process.send_signal(number)
    _, message = process.communicate(timeout=PATIENCE)
    assert process.returncode == status, message
    assert "Traceback" not in message
    assert "run the same command again" in message
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in children))
    assert record(folder / "here", "tokenize")["status"] == "interrupted"
    (store,) = (folder / "runs/stores").iterdir()
    assert not (store / "tokens" / "manifest.json").exists()
    assert not list(store.rglob("*.parquet"))


def test_second_live_run_in_a_directory_is_refused(folder):
    words = slow_source(folder)
    first = start(*words)
    try:
        wait_for((folder / "here/run.yaml").exists)
        second = start(*words)
        _, message = second.communicate(timeout=PATIENCE)
        assert second.returncode == 2
        assert f"process {first.pid}" in message
    finally:
        first.send_signal(signal.SIGINT)
        first.communicate(timeout=PATIENCE)


def test_killed_parent_takes_its_ranks_along(folder):
    import psutil

    process = start(*slow_source(folder))
    wait_for(lambda: any((folder / "runs").glob("stores/*/tokens.lock")))  # it is at work
    children = descendants(process.pid)
    assert children
    process.kill()
    process.communicate()
    wait_for(lambda: not any(psutil.pid_exists(pid) for pid in children))


@pytest.mark.parametrize(
    "stage, told",
    [
        ("shuffle", "add tokenize to stages"),
        ("repartition", "add shuffle to stages"),
        ("train", "add tokenize to stages"),
        ("export", "add train to stages"),
        ("infer", "run the stages train and export first"),
        ("serve", "run the stages train and export first"),
        ("tokenize,train,infer", "add export to stages"),
    ],
)
def test_a_stage_without_what_it_stands_on_is_refused(folder, stage, told, capsys):
    assert main(["+recipe=demo", f"stages=[{stage}]"]) == 2
    assert told in " ".join(capsys.readouterr().err.split())
    assert not list(folder.iterdir())


TRAINED = ["+recipe=demo", "stages=[tokenize,train,export]", *DATA[2:], "parallelism=zero",
           "~parallelism.pipeline_stages", "hardware.devices_per_node=1", "data.seq_len=32",
           "training.evaluate.fraction=0", "training.evaluate.every=null"]  # fmt: skip


def test_ctrl_c_saves_what_was_trained(folder):
    process = start(*TRAINED, "run_dir=here")
    wait_for((folder / "here/metrics.jsonl").exists)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "press it again to stop at once" in told and "Traceback" not in told
    (step,) = re.findall(r"train: stopped by .*; saved at step (\d+) of 400", told)
    assert record(folder / "here", "train")["error"].endswith(f"step {step} of 400")
    saved = [path.name for path in (folder / "here/checkpoints").iterdir()]
    assert saved == [f"step-{int(step):08}"]


def test_training_that_has_spent_its_time_ends_as_one_that_was_stopped(folder, capfd):
    assert main([*TRAINED, "training.max_runtime=1s"]) == 75
    told = capfd.readouterr().err
    assert "training.max_runtime=1.0 s is used up; saved at step 1 of 400" in told
    assert "run the same command again" in told and "export" not in told
    (run,) = runs(folder)
    assert record(run, "train")["status"] == "interrupted"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000001"]
