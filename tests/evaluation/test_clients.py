"""lm-eval from outside, as a client of the server, finds what it finds on the exported model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from easyllm.tasks import builtin
from tests.evaluation.conftest import begin_texts
from tests.inference.small import save_model
from tests.serving.test_stage import Worker
from tests.support import wait_for

pytestmark = pytest.mark.slow


PLAIN, FIRST_TOKEN = "plain", "with a first token"


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, vocab_size=257, max_position_embeddings=512)
    return folder if request.param == PLAIN else begin_texts(folder)


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """In two processes, as users start it."""
    worker = Worker(tmp_path_factory.mktemp("server"), model, max_batch=16)
    wait_for(lambda: worker.status("/ready") == 200)
    yield worker
    worker.process.terminate()
    worker.process.wait()


def likelihoods(model: str, arguments: dict[str, Any]) -> list[tuple[float, bool]]:
    """Of every choice of every item."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tasks = [{"task": name, **task} for name, task in builtin.TASKS.items()]
    result = simple_evaluate(
        model, model_args=arguments, tasks=tasks, limit=8, log_samples=True, batch_size=4,
        bootstrap_iters=0, task_manager=TaskManager(include_defaults=False),
    )  # fmt: skip
    assert result is not None
    samples = [sample for held in result["samples"].values() for sample in held]
    return [(float(value), greedy) for s in samples for ((value, greedy),) in s["resps"]]


# as texts the client would send the first token's name, and the server add the token once more
@pytest.mark.parametrize(
    ("model", "as_tokens"), [(PLAIN, True), (PLAIN, False), (FIRST_TOKEN, True)], indirect=["model"]
)
def test_the_server_gives_the_likelihoods_of_the_export(
    model: Path, server: Worker, as_tokens: bool
) -> None:
    expected = likelihoods("hf", {"pretrained": str(model), "dtype": "float32", "device": "cpu"})
    found = likelihoods(
        "local-completions",
        {"model": server.run.serving.model_name or "model",
         "base_url": f"{server.client.base_url}/v1/completions", "tokenizer": str(model),
         "tokenized_requests": as_tokens, "max_length": 512,
         # its class for transformers leaves it to the tokenizer, the client adds none by itself
         "add_bos_token": bool(AutoTokenizer.from_pretrained(model).bos_token)},
    )  # fmt: skip
    assert len(found) == 2 * 8 * 4
    for (ours, greedy), (theirs, expected_greedy) in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-3)
        assert greedy == expected_greedy
