"""What vLLM computes is compared as a stage does."""

from __future__ import annotations

from pathlib import Path

import pytest

from easyllm.evaluation.verify.verify import verify
from easyllm.spec.run import RunSpec
from tests.inference.small import save_model
from tests.support import run_spec

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

VLLM = {"_target_": "easyllm.inference.engines.VLLM", "enforce_eager": True}


def compared(folder: Path, model: Path) -> RunSpec:
    return run_spec(
        folder,
        {"model": {"dtype": "float32"}, "inference": {"model": str(model), "engine": VLLM},
         "verify": {"documents": 2, "new_tokens": 6}},
    )  # fmt: skip


def test_vllm_is_compared_with_transformers(tmp_path: Path) -> None:
    # heads of 32, the narrowest that vLLM has kernels for on a CPU
    model = save_model(tmp_path / "model", chat=True, hidden_size=128, num_attention_heads=4)
    found = {
        comparison.name: comparison for comparison in verify(compared(tmp_path, model)).comparisons
    }
    assert [
        comparison.name for comparison in found.values() if comparison.status == "differs"
    ] == []
    assert {"engine's tokenizer", "engine's prompts", "engine's numbers", "engine's answers"} <= {
        comparison.name for comparison in found.values() if comparison.status == "same"
    }
    assert found["engine's tokenizer"].between == "transformers ~ vLLM itself"
