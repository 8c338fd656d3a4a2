"""What vLLM cannot serve is said before one of its processes starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from easyllm.errors import UserError
from tests.inference.small import save_model
from tests.models.small import save
from tests.support import run_spec

vllm = pytest.importorskip("vllm")

WIDE = {"hidden_size": 128}
"""Of heads that vLLM has kernels for."""


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.v1.engine.async_llm import AsyncLLM

    def started(*_: Any, **__: Any) -> None:
        raise AssertionError("the engine was started")

    monkeypatch.setattr(AsyncLLM, "__init__", started)


def refusal(folder: Path, **fields: Any) -> str:
    engine = {"_target_": "easyllm.inference.engines.VLLM", "enforce_eager": True, **fields}
    run = run_spec(
        folder, {"model": {"dtype": "float32"}, "inference": {"batch_size": 2, "engine": engine}}
    )
    with pytest.raises(UserError) as error:
        run.inference.engine.load(folder, run)
    return str(error.value)


def test_a_model_that_it_can_serve_would_be_started(tmp_path: Path) -> None:
    folder = save_model(tmp_path, **WIDE)
    with pytest.raises(AssertionError, match="was started"):
        refusal(folder)


def rename(folder: Path) -> str:
    edit(folder, architectures=["NobodysForCausalLM"])
    return "Model architectures ['NobodysForCausalLM'] are not supported"


def retype(folder: Path) -> str:
    edit(folder, model_type="xverse", architectures=["XverseForCausalLM"])
    return "xverse"


def edit(folder: Path, **values: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), "utf-8")


@pytest.mark.parametrize("change", [rename, retype])
def test_a_model_that_vllm_has_no_class_for(tmp_path: Path, change: Callable[[Path], str]) -> None:
    folder = save_model(tmp_path, **WIDE)
    said = change(folder)
    told = refusal(folder)
    assert said in told and "inference.engine._target_=" in told
    assert "pydantic" not in told and len(told) < 500


def test_heads_that_a_cpu_has_no_kernel_for(tmp_path: Path) -> None:
    assert "heads are 8 wide" in refusal(save_model(tmp_path))


def test_more_positions_than_the_model_has(tmp_path: Path) -> None:
    assert "max_model_len (256)" in refusal(save_model(tmp_path, **WIDE), max_model_len=256)


def test_an_environment_in_which_vllm_does_not_find_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own message would be that an older vLLM be installed."""
    folder = save_model(tmp_path, **WIDE)
    over = {"hidden_size": 160, "vocab_size": 512}
    (folder / "model.safetensors").unlink()
    save("baichuan_13b", folder, over=over)
    monkeypatch.setattr(vllm.ModelRegistry, "models", dict(vllm.ModelRegistry.models))
    vllm.ModelRegistry.models.pop("BaichuanForCausalLM", None)
    monkeypatch.setattr("vllm.plugins.plugins_loaded", True)
    told = refusal(folder)
    assert "vLLM itself has no BaichuanForCausalLM and does not find easyllm's" in told
    assert "VLLM_PLUGINS" in told
