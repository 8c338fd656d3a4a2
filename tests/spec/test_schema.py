"""The one walk: what it reads it writes again, and no unknown key or wrong type gets by."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from easyllm.cli.command_line.overrides import read as read_overrides
from easyllm.cli.compose import compose
from easyllm.cli.library import Library, shipped_folder
from easyllm.dispatcher.identity import resolved, run_folder, store_address
from easyllm.runfile import read_config
from easyllm.spec.schema import flatten, write

LIBRARY = Library(shipped_folder())
RECIPES = LIBRARY.options("recipe")


def composed(*words: str) -> dict[str, Any]:
    return compose(read_overrides(list(words), LIBRARY), LIBRARY)


DEMO = composed("+recipe=demo", "+tracker=tensorboard")


def put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A copy with ``value`` at a dotted key."""
    changed = copy.deepcopy(config)
    *path, last = key.split(".")
    node = changed
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return changed


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_written_is_read_again(recipe):
    given = ["data.sources.conversations.path=x.tsv"] if recipe == "smollm2_pipe" else []
    run, problems = read_config(composed(f"+recipe={recipe}", *given))
    assert not problems
    again, problems = read_config(write(run))
    assert not problems
    assert again == run


def test_every_key_of_a_resolved_spec_is_a_key():
    """Each leaf misspelt is refused by its dotted name: no part of the spec is left unread."""
    run, _ = read_config(DEMO)
    whole = write(run)
    free = ("model.config.", "inference.prompts.", "model.overrides")
    leaves = [k for k in flatten(whole) if not k.startswith(free) and "_target_" not in k]
    assert len(leaves) > 60
    for key in leaves:
        _, problems = read_config(put(whole, f"{key}x", 1))
        assert f"{key}x" in [p.key for p in problems]


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("seed", True, "a whole number"),
        ("seed", 1.5, "a whole number"),
        ("seed", float("nan"), "a whole number"),
        ("training.optimizer.lr", float("inf"), "a number"),
        ("training.optimizer.lr", "1e-3", "a number"),
        ("name", 7, "text"),
        ("name", False, "text"),
        ("model.dtype", "float16", "not a choice"),
        ("stages", "train", "a list"),
        ("data.sources", ["a"], "a map by name"),
        ("data", None, "a map of keys"),
        ("parallelism", 5, "a component"),
        ("parallelism", {"_target_": None}, "Parallelism class"),
        ("training.evaluate.fraction", 1.5, "at most 1"),
        ("serving.port", 0, "at least 1"),
        ("data.sources.more", {"_target_": "easyllm.data.sources.readers.Text"}, "must be given"),
    ],
)
def test_wrong_values(key, value, message):
    _, problems = read_config(put(DEMO, key, value))
    (problem,) = problems
    assert problem.key.startswith(key)
    assert message in problem.message


@pytest.mark.parametrize("value", [3, 3.0, 3e0])
def test_whole_floats_are_whole_numbers(value):
    run, problems = read_config(put(DEMO, "training.steps", value))
    assert not problems
    assert run.training.steps == 3
    assert isinstance(run.training.steps, int)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(key=st.sampled_from(sorted(flatten(DEMO))), value=PLAIN)
def test_any_value_anywhere_is_read_or_refused(key, value):
    """The walk never raises, and what it accepts it can write and read again."""
    run, problems = read_config(put(DEMO, key, value))
    if not problems:
        again, problems = read_config(write(run))
        assert not problems
        assert again == run


def test_the_same_spec_is_the_same_run_wherever_it_is_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, _ = read_config(DEMO)
    once = resolved(run)
    assert resolved(once) == once
    assert run_folder(once) == run_folder(run)
    assert store_address(once) == store_address(run)


@pytest.mark.parametrize(
    "key, value, other_run, other_store",
    [
        ("seed", 1, True, True),
        ("training.steps", 1, True, False),
        ("data.max_documents", 1, True, True),
        ("data.sources.python_docs.weight", 2.0, True, False),
        ("stages", ["tokenize"], False, False),
        ("serving.port", 1234, False, False),
        ("data.workers", 1, False, False),
    ],
)
def test_what_makes_another_run_and_another_store(
    key, value, other_run, other_store, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before, after = (resolved(read_config(c)[0]) for c in (DEMO, put(DEMO, key, value)))
    assert (before.run_dir != after.run_dir) == other_run
    assert (before.data.dir != after.data.dir) == other_store


@pytest.mark.parametrize("key", ["data.sources.a/b", "data.sources..hidden"])
def test_a_source_whose_name_is_no_folders(key):
    from easyllm.spec.checks import problems

    name = key.removeprefix("data.sources.")
    reader = {"_target_": "easyllm.data.sources.readers.PythonDocs"}
    run, _ = read_config({**DEMO, "data": {**DEMO["data"], "sources": {name: reader}}})
    assert [p.key for p in problems(run)] == [key]


def test_checkpoints_come_by_steps_or_by_time():
    for value, steps, seconds in ((100, 100, None), ("90m", None, 5400), (None, None, None)):
        run, problems = read_config(put(DEMO, "training.checkpoint.every", value))
        checkpoint = run.training.checkpoint
        assert not problems and (checkpoint.steps, checkpoint.seconds) == (steps, seconds)
        assert write(run)["training"]["checkpoint"]["every"] == value
    for value in ("100", "0m", 0, 0.5, "soon"):
        _, problems = read_config(put(DEMO, "training.checkpoint.every", value))
        assert [p.message for p in problems] == [
            "must be a whole number at least 1 or a length of time such as 30m"
        ]
