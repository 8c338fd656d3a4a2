"""vLLM answers as transformers does, for small models of types without a family of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.inference.vllm.test_families import Answers, asked, of_transformers, prompts
from tests.models.decoders import SHAPE, save

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

__all__ = ["prompts"]
WIDE = replace(SHAPE, hidden_size=128, head_dim=32)
"""Heads of 32, the narrowest that vLLM has kernels for on a CPU."""
TYPES = (
    "cohere", "ernie4_5", "gemma2", "gemma3_text", "glm4", "granite", "mixtral", "olmo3", "phi3",
    "qwen2_moe", "qwen3_moe", "smollm3",
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("decoders")
    return {name: save(name, root / name, WIDE) for name in TYPES}


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path], prompts: list[list[int]]) -> Answers:
    return asked(folders, prompts)


@pytest.mark.parametrize("name", TYPES)
def test_greedy_answers_are_those_of_transformers(
    folders: dict[str, Path], prompts: list[list[int]], answers: Answers, name: str
) -> None:
    assert answers[name] == of_transformers(folders[name], prompts)
