"""vLLM answers as transformers does, for a small model of every family as it was published, and of
types of decoders without one."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import easyllm.models.custom  # noqa: F401
from tests.models import decoders
from tests.models.small import SMALL, save

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TOKENS = 20
LENGTHS = (3, 40, 77, 100, 64, 90)
"""Of the prompts: more than vLLM is let take at a time, longer than a step and than a window."""
CLEAR = 2e-5
"""How far the likeliest token must be ahead, of the largest value, for two engines to agree on
it; they round to some 1e-6."""

WIDE = replace(decoders.SHAPE, hidden_size=128, head_dim=32)
"""Heads of 32, the narrowest that vLLM has kernels for on a CPU."""
DECODERS = (
    "cohere", "ernie4_5", "gemma2", "gemma3_text", "glm4", "granite", "mixtral", "olmo3", "phi3",
    "qwen2_moe", "qwen3_moe", "smollm3",
)  # fmt: skip

Answers = dict[str, list[list[int]]]


def wide(name: str) -> dict[str, int]:
    """Heads of 32, the narrowest that vLLM has kernels for on a CPU."""
    config = SMALL[name]
    sizes = {key: 32 for key in ("head_dim", "kv_channels") if key in config}
    return {"hidden_size": 32 * config["num_attention_heads"], **sizes}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    families = {name: save(name, root / name, over=wide(name)) for name in SMALL}
    return families | {name: decoders.save(name, root / name, WIDE) for name in DECODERS}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(1, 512, (n,), generator=drawn).tolist() for n in LENGTHS]


def asked(folders: dict[str, Path], prompts: list[list[int]], ranks: int = 1) -> Answers:
    """vLLM's answers by family."""
    given = next(iter(folders.values())).parent / "given.json"
    values = {
        "models": {name: str(folder) for name, folder in folders.items()},
        "prompts": prompts, "tokens": TOKENS, "ranks": ranks,
    }  # fmt: skip
    given.write_text(json.dumps(values), "utf-8")
    command = [sys.executable, "-m", "tests.inference.vllm.greedy", str(given)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr[-4000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: Answers = json.loads(lines[-1])
    return found


@pytest.fixture(scope="module")
def answers(folders: dict[str, Path], prompts: list[list[int]]) -> Answers:
    return asked(folders, prompts)


@pytest.mark.parametrize("name", [*SMALL, *DECODERS])
def test_greedy_answers_are_those_of_transformers(
    folders: dict[str, Path], prompts: list[list[int]], answers: Answers, name: str
) -> None:
    assert answers[name] == of_transformers(folders[name], prompts)


def test_ranks_that_share_each_layer_answer_as_one(
    tmp_path: Path, prompts: list[list[int]]
) -> None:
    """Each with its heads' slopes, its rows of the packed matrix and of the normalised head."""
    over = {"hidden_size": 192, "num_attention_heads": 6}
    folder = save("baichuan2_13b", tmp_path / "shared", over=over)
    made = asked({"shared": folder}, prompts, ranks=2)
    assert made["shared"] == of_transformers(folder, prompts)


def of_transformers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """What its class answers to each prompt, where rounding does not decide."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS,
            min_new_tokens=TOKENS, do_sample=False, eos_token_id=None,
            output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        scores = torch.stack(made.scores).squeeze(1)
        first, second = scores.topk(2).values.unbind(-1)
        clear = CLEAR * scores.abs().max()
        assert (first - second).min() > clear, "take another seed: here rounding decides"
        expected.append(made.sequences[0, len(prompt) :].tolist())
    return expected
