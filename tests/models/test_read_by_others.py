"""Exports as others read them: plain transformers 5, and 4.57 (slow), both without easyllm."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from easyllm.files import atomic_dir, file_lock
from tests.models.exported import LONG, TYPES, Exported, exported
from tests.models.small import Reference

ROOT = Path(__file__).parent.parent.parent
REQUIREMENTS = ROOT / "requirements" / "transformers4.txt"
TEXTS = ["the list of 10 items", "", " if  not\n\n1234\tcafé <turn>vu <end>", "x" * 50]
CHAT = [{"role": "user", "content": "the list of 10?"}, {"role": "assistant", "content": "vu"}]
OLDER = "4.57"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Exported]:
    return exported(tmp_path_factory.mktemp("exported"))


def ids() -> torch.Tensor:
    torch.manual_seed(5)
    return torch.randint(3, 300, (2, LONG))


def read(made: dict[str, Exported], to: Path, *first: Path) -> dict[str, Any]:
    """What a process of its own reads with the transformers in ``first``."""
    asked = {
        "folders": {name: str(one.folder) for name, one in made.items()},
        "texts": TEXTS, "chat": CHAT, "ids": ids().tolist(),
    }  # fmt: skip
    (to / "asked.json").write_text(json.dumps(asked), "utf-8")
    script = Path(__file__).with_name("read_by_others.py")
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join(map(str, first)), "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(to / "modules"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    subprocess.run(
        [sys.executable, str(script), str(to / "asked.json"), str(to / "found.pt")],
        cwd=to, env=environment, check=True, timeout=500,
    )  # fmt: skip
    found: dict[str, Any] = torch.load(to / "found.pt", weights_only=False)
    return found


@pytest.fixture(scope="module")
def newer(made: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(made, tmp_path_factory.mktemp("newer"))


@pytest.fixture(scope="module")
def older(made: dict[str, Exported], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read(made, tmp_path_factory.mktemp("older"), transformers4())


def transformers4() -> Path:
    """A folder with the transformers of the requirements, installed once a machine."""
    digest = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()) / "easyllm-tests"
    target = cache / f"transformers4-{digest}"
    if not target.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with file_lock(cache / f".{target.name}.lock"):
            if not target.exists():
                with atomic_dir(target) as temporary:
                    _install(temporary)
    return target


def _install(folder: Path) -> None:
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(folder)]
    done = subprocess.run(
        [*pip, "-r", str(REQUIREMENTS)], capture_output=True, text=True, timeout=400
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"transformers {OLDER} cannot be installed here: {last}")


def check(one: Exported, name: str, found: dict[str, Any]) -> None:
    """Logits, tokens, ends and dtype of an export are those of what was trained."""
    assert "error" not in found, found["error"]
    with torch.no_grad():
        expected = Reference(TYPES[name][0], one.published).logits(ids())
    torch.testing.assert_close(found["logits"], expected, atol=1e-5, rtol=1e-5)
    trained: Any = PreTrainedTokenizerFast.from_pretrained(one.tokenizer)
    chat = trained.apply_chat_template(CHAT, add_generation_prompt=True)["input_ids"]
    for way in ("auto", "as it is"):
        if way == "auto" and "warning" in one.told:
            continue
        assert found[way]["texts"] == trained(TEXTS)["input_ids"]
        assert found[way]["chat"] == chat
    assert found["dtype"] == "torch.float32"
    assert found["ends"] == one.config()["eos_token_id"]
    assert len(found["written"]) > len(trained(TEXTS[0])["input_ids"])


@pytest.mark.parametrize("name", TYPES)
def test_plain_transformers_reads_an_export(
    made: dict[str, Exported], newer: dict[str, Any], name: str
) -> None:
    check(made[name], name, newer[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", TYPES)
def test_transformers_4_reads_an_export(
    made: dict[str, Exported], older: dict[str, Any], name: str
) -> None:
    assert older["version"].startswith(OLDER)
    told = {key: value for key, value in made[name].told.items() if key != "warning"}
    one = Exported(made[name].published, made[name].folder, made[name].tokenizer, told)
    check(one, name, older[name])


def test_what_auto_tokenizer_reads_otherwise_is_said(
    made: dict[str, Exported], newer: dict[str, Any]
) -> None:
    """transformers 5.19 has Qwen2's rules for whatever tokenizer lies beside a Qwen2 model."""
    for name, one in made.items():
        trained = PreTrainedTokenizerFast.from_pretrained(one.tokenizer)
        same = newer[name]["auto"]["texts"] == trained(TEXTS)["input_ids"]
        assert same or "warning" in one.told, name
    warned = [name for name, one in made.items() if "warning" in one.told]
    assert warned and {made[name].config()["model_type"] for name in warned} == {"qwen2"}
    assert "takes Qwen2Tokenizer" in made[warned[0]].told["warning"]
