"""Asks transformers alone, in another process, what it makes of a model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyllm.errors import UserError
from easyllm.evaluation.verify import plain
from easyllm.spec.model.attention import INSTEAD
from easyllm.spec.run import RunSpec


def ask(
    run: RunSpec,
    folder: Path,
    *,
    remote_code: bool,
    texts: Sequence[str] = (),
    prompts: Sequence[Mapping[str, Any]] = (),
    documents: Sequence[Sequence[int]] = (),
    asked: Sequence[Sequence[int]] = (),
    gradient: Sequence[int] = (),
) -> dict[str, Any]:
    """What transformers makes of the model in ``folder``: the tokens of ``texts`` and of the
    ``prompts`` of conversations (``messages``, ``tools`` and ``arguments`` of the template), the
    log-probabilities of the tokens of ``documents``, the greedy answers to those ``asked``, and the
    norm of the gradient of the loss over the document ``gradient``, if any.

    ``remote_code`` allows the classes that the folder carries. Raises UserError where transformers
    cannot load it.
    """
    question = {
        "folder": str(folder), "remote_code": remote_code, "texts": list(texts),
        "prompts": list(prompts), "documents": list(documents), "asked": list(asked),
        "gradient": list(gradient), "new_tokens": run.verify.new_tokens,
        "device": run.hardware.device, "dtype": run.model.dtype,
        "attention": INSTEAD.get(run.model.attention, run.model.attention),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        given, answer = Path(scratch) / "question.json", Path(scratch) / "answer.json"
        given.write_text(json.dumps(question), "utf-8")
        # isolated: neither the current folder nor PYTHONPATH is searched for modules
        command = [sys.executable, "-I", plain.__file__, str(given), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            raise UserError(f"{folder}: transformers cannot load this model: {last}")
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
        return found
