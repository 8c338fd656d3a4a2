"""Runs that are trained, exported and compared: a model, and an adapter beside one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from easyllm.files import write_json
from easyllm.spec.run import RunSpec
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.support import merged, run_spec
from tests.training.conftest import ZERO, Small, Trained, launch, small  # noqa: F401

FEW = {"verify": {"documents": 2, "new_tokens": 6}}
ADAPTER = {"_target_": "lora", "r": 4, "alpha": 8}


def begin_texts(folder: Path) -> Path:
    """Have the tokenizer in ``folder`` begin each text with a token, as Llama's does."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    first = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, tokenizer.eos_token_id)]
    )
    tokenizer.bos_token = first
    tokenizer.save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"][0] == tokenizer.eos_token_id
    return folder


@dataclass(frozen=True)
class Exported:
    """Trained runs by name, with their exports."""

    small: Small
    trained: Trained
    configs: dict[str, dict[str, Any]]

    def run(self, name: str, over: Mapping[str, Any] | None = None) -> RunSpec:
        config = merged(self.configs[name], merged(FEW, over or {}))
        return run_spec(self.trained.root / name, config)

    def folder(self, name: str) -> Path:
        return self.trained.root / name / "run" / "export"


@pytest.fixture(scope="session")
def exported(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Exported:  # noqa: F811
    config = merged(small.config("untied", {"_target_": ZERO}, 1), {"training": {"steps": 12}})
    high = {"training": {"adapter": ADAPTER, "optimizer": {"lr": 3e-2}}}
    configs = {"model": config, "adapter": merged(config, high)}
    cases = [{"name": name, "config": config} for name, config in configs.items()]
    found = Exported(small, launch(tmp_path_factory.mktemp("verified"), 1, cases), configs)
    for name in configs:
        record = {"metrics": found.trained.seen(name)[0]["report"]}  # as the dispatcher writes it
        (found.trained.root / name / "run" / "stages").mkdir()
        write_json(found.trained.root / name / "run" / "stages" / "train.json", record)
        load("export").work(found.run(name), Rank())
    return found
