"""No spec, however wrong, ends in a traceback, in a hang, or in words that help nobody."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli import fuzz

FAULTS = ("tracebacks", "hangs", "without_key_or_remedy", "foreign_words", "leftovers")


def none_in(count: int, seed: int, folder: Path) -> None:
    found, faults = fuzz.run(count, seed, folder)
    print(json.dumps(found))
    assert found["refused"] > count / 2, "specs that are mostly sound try nothing"
    told = [(fault.fault, fault.words, fault.status, fault.message[-500:]) for fault in faults[:5]]
    assert {name: found[name] for name in FAULTS} == dict.fromkeys(FAULTS, 0), told


def test_a_few_specs(empty: Path) -> None:
    none_in(150, 1, empty)


@pytest.mark.slow
def test_many_specs(empty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():  # its line of counts is for whoever runs it
        none_in(5000, 2, empty)


def test_a_fault_is_seen(empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checker that raises, one that never ends, and one that names no remedy."""
    from easyllm.spec.problems import Problem

    def endless(run: object) -> list[Problem]:
        while True:
            pass

    def raising(run: object) -> list[Problem]:
        raise TypeError("none")

    fuzz.prepare(empty)
    monkeypatch.setattr(fuzz, "SECONDS", 0.2)
    for check, fault in (
        (raising, "traceback"), (endless, "hang"),
        (lambda run: [Problem("seed", 1, "is wrong")], "bare"),
        (lambda run: [Problem("seed", 1, "Interpolation key not found", "fix it")], "foreign"),
        (lambda run: [], ""),
    ):  # fmt: skip
        monkeypatch.setattr("easyllm.spec.checks.problems", check)
        assert fuzz.tried(["+recipe=demo", "stages=[]"], empty).fault == fault
