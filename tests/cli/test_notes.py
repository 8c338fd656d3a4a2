"""What a run says of values that are allowed and seldom meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from easyllm.__main__ import main
from easyllm.cli.check import check
from easyllm.cli.command_line.overrides import read
from easyllm.cli.compose import compose
from easyllm.cli.library import Library, shipped_folder
from easyllm.preflight.notes import notes
from tests.support import needs_java

LIBRARY = Library(shipped_folder())


def noted(*words: str) -> list[str]:
    """The notes of a run on a machine with two GPUs."""
    return list(notes(check(compose(read(list(words), LIBRARY), LIBRARY), LIBRARY)))


@pytest.fixture(autouse=True)
def gpus(monkeypatch: pytest.MonkeyPatch, empty: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    (empty / "mine.txt").write_text("A text of one's own.\n")


def test_gpus_that_are_not_used() -> None:
    (said,) = noted("+recipe=demo")
    assert said.startswith(
        "hardware.device = cpu, and this machine has 2 CUDA devices: infer, train"
    )
    assert not noted("+recipe=demo", "stages=[tokenize,inspect]")


def test_gpus_that_train_on_the_sample() -> None:
    words = ["+recipe=demo", "hardware=h100", "parallelism=zero", "~parallelism.pipeline_stages"]
    (said,) = noted(*words)
    assert said.startswith("data.sources.python_docs is half a megabyte")
    assert not noted(*words, "data=text", "data.sources.text.path=mine.txt")


def on_machines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a run on 8 machines, of which this is the first."""
    for name, value in (("NODE_RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511")):
        monkeypatch.setenv(name, value)
    return ["+recipe=llama13b_pipe", "data=text", "data.sources.text.path=mine.txt"]


def test_data_stages_of_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    words = on_machines(monkeypatch)
    (said,) = noted(*words)
    assert said.startswith("tokenize, shuffle, repartition on the first of 8 machines alone")


@needs_java
def test_data_stages_by_spark_are_on_all_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    words = on_machines(monkeypatch)
    assert not noted(*words, "data.engine=spark", "data.engine.master=spark://host:7077")
    assert not noted(*words, "stages=[]")


def test_they_are_said_first_and_last(empty: Path, capfd: Any) -> None:
    words = ["+recipe=demo", "stages=[tokenize,train]", "data.max_documents=20", "training.steps=1",
             "data.tokenizer.vocab_size=300", "data.seq_len=32", "training.evaluate.fraction=0",
             "training.evaluate.every=null", "parallelism=zero", "~parallelism.pipeline_stages",
             "hardware.devices_per_node=1"]  # fmt: skip
    assert main(words) == 0
    said = capfd.readouterr()
    assert "easyllm | note: hardware.device = cpu" in said.err
    assert "note: hardware.device = cpu" in said.out
