"""A plain word where a component stands names a shipped class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from easyllm.cli.command_line.overrides import read as read_overrides
from easyllm.cli.compose import compose, from_file
from easyllm.cli.library import Library, shipped_folder
from easyllm.components import shipped
from easyllm.data.chat.formats import ChatML
from easyllm.data.executors.components import Local, Spark
from easyllm.data.sources.readers import Text
from easyllm.runfile import read_config, save
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Component, DataEngine, Reader, Schedule
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import role_at
from easyllm.training.adapters import LoRA
from easyllm.training.schedules import Constant, Cosine, Linear

LIBRARY = Library(shipped_folder())


def composed(*words: str) -> tuple[RunSpec, list[Problem]]:
    return read_config(compose(read_overrides(["+recipe=demo", *words], LIBRARY), LIBRARY))


def test_no_two_components_of_a_role_have_one_name() -> None:
    roles = [
        role
        for role in Component.__subclasses__()
        if role.__module__.startswith("easyllm.spec.roles.")
    ]
    assert len(roles) > 10
    for role in roles:
        names = Counter(cls.__name__.lower() for cls in shipped(role))
        assert names and max(names.values()) == 1, role


@pytest.mark.parametrize(
    "key, role",
    [
        ("data.engine", DataEngine),
        ("data.sources.mine", Reader),
        ("training.schedule", Schedule),
        ("data", None),
        ("data.engine.master", None),
        ("data.dir", None),
        ("nothing.of.that", None),
        ("model.overrides.x", None),
    ],
)
def test_where_components_stand(key: str, role: Any) -> None:
    assert role_at(key) is role


def test_words_on_the_command_line() -> None:
    run, problems = composed(
        "data.engine.master=local[4]",  # before the word, and with brackets as Spark writes them
        "data.engine=spark",
        "data.engine.conf.spark.executor.cores=3",
        "data.template=ChatML",
        "training.schedule=LINEAR",
        "training.schedule.floor=0.25",
        "data.sources.mine=text",
        "data.sources.mine.path=mine.txt",
    )
    assert not problems
    assert run.data.engine == Spark(master="local[4]", conf={"spark": {"executor": {"cores": 3}}})
    assert run.data.engine.settings == {"spark.executor.cores": "3"}
    assert run.data.template == ChatML()
    assert run.training.schedule == Linear(floor=0.25)
    assert run.data.sources["mine"] == Text(path="mine.txt")


def test_an_adapter_by_a_word_and_fields_before_it() -> None:
    run, problems = composed(
        "training.adapter.r=8", "training.adapter=lora", "training.adapter.targets=[q_proj,v_proj]"
    )
    assert not problems
    assert run.training.adapter == LoRA(r=8, targets=("q_proj", "v_proj"))
    run, problems = composed("training.freeze.low=model.layers.0.*")
    assert not problems
    assert run.training.freeze == {"low": "model.layers.0.*"}
    _, problems = composed("training.adapter=lara")
    assert problems[0].remedy.startswith("did you mean lora?")


def test_a_word_puts_away_the_fields_of_another_class(tmp_path: Path) -> None:
    """In a recipe's tree and in a run.yaml alike."""
    run, problems = composed("training.schedule=constant")  # the demo's cosine has a warm-up
    assert not problems
    assert run.training.schedule == Constant()
    run, _ = composed("training.schedule=linear", "training.schedule.floor=0.5")
    file = tmp_path / "run.yaml"
    save(run, file)
    assert "_target_: easyllm.training.schedules.Linear" in file.read_text()
    run, problems = read_config(
        from_file(file, read_overrides(["training.schedule=constant"], LIBRARY))
    )
    assert not problems
    assert run.training.schedule == Constant()


def test_words_in_yaml() -> None:
    run, problems = read_config(
        {
            "data": {"engine": "local", "template": {"_target_": "chatml"}},
            "training": {"schedule": {"_target_": "cosine", "floor": 0.5}},
        }
    )
    assert not problems
    assert (run.data.engine, run.data.template) == (Local(), ChatML())
    assert run.training.schedule == Cosine(floor=0.5)


def test_an_unknown_word() -> None:
    _, problems = composed("data.engine=sprak", "training.schedule=quadratic")
    told = {problem.key: problem for problem in problems}
    assert told["data.engine"].value == "sprak"
    assert told["data.engine"].remedy.startswith("did you mean spark? one of local, spark")
    assert told["training.schedule"].remedy.startswith("one of constant, cosine, linear")
