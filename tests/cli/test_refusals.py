"""A wrong spec: status 2, a short message of key, value, origin and remedy, no trace left."""

from __future__ import annotations

import pytest

from easyllm.__main__ import main
from tests.cli.refusals import REFUSALS
from tests.cli.refused_words import REFUSED_WORDS

ALL = REFUSALS | REFUSED_WORDS


@pytest.mark.parametrize("words, told", ALL.values(), ids=ALL)
def test_refused(words, told, empty, capsys, monkeypatch):
    monkeypatch.setattr("easyllm.preflight.machine.cuda_devices", lambda: 0)
    assert main(words) == 2
    message = " ".join(capsys.readouterr().err.split())
    for part in told:
        assert part in message, message
    assert "Traceback" not in message
    assert "\x1b" not in message
    assert message.count(" ") < 110, "a message of a few lines"
    assert not list(empty.iterdir()), "a refused spec leaves nothing behind"


def test_a_package_that_is_not_installed(empty, capsys, monkeypatch):
    monkeypatch.setattr("easyllm.preflight.machine.find_spec", lambda name: name != "peft" or None)
    assert main(["+recipe=demo", "training.adapter=lora"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "LoRA" in message and "needs the package peft" in message
    assert "pip install 'easyllm[lora]'" in message


def test_attention_that_an_older_torch_has_not(empty, capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.10.0+cu130")
    monkeypatch.setattr("easyllm.preflight.machine.cuda_devices", lambda: 8)
    assert main(["+recipe=llama3_8b", "model.attention=varlen"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "model.attention = varlen" in message
    assert "from 2.11 on, and this is 2.10.0+cu130" in message
    assert "model.attention=sdpa" in message


def test_a_loss_that_an_older_torch_has_not(empty, capsys, monkeypatch):
    monkeypatch.setattr("importlib.metadata.version", lambda name: "2.11.0+cu130")
    assert main(["+recipe=demo", "training.loss=linear_cross_entropy"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "training.loss = linear_cross_entropy" in message
    assert "from 2.13 on, and this is 2.11.0+cu130" in message
    assert "pip install 'torch>=2.13'" in message


def test_all_problems_at_once(empty, capsys):
    words = ["model.pth=x", "training.steps=ten", "data.seq_len=0", "+recipe=demo",
             "parallelism.global_batch_size=7", "inference.prompts=absent.txt"]  # fmt: skip
    assert main(words) == 2
    message = capsys.readouterr().err
    assert "5 problems" in message
    for key in ("model.pth", "training.steps", "data.seq_len", "global_batch_size", "prompts"):
        assert key in message


def test_consequences_are_not_reported(empty, capsys):
    """A batch that only seems wrong because the micro-batch is unreadable is not a problem."""
    assert main(["+recipe=demo", "parallelism.micro_batch_size=x", "training.steps=ten"]) == 2
    assert "2 problems" in capsys.readouterr().err
