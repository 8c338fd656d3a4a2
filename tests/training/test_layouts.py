"""Every layout trains the same model: losses, norms, samples and what is read of the files."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from easyllm.data.dataset.rows import Row, open_rows
from easyllm.parallelism import world
from tests.support import run_spec
from tests.training.conftest import GLOBAL_BATCH, MODELS, STEPS, ZERO, Small, Trained, layouts


@cache
def plain_loop(small: Small, model: str) -> list[tuple[float, float]]:
    """Losses and gradient norms of transformers' model under torch's optimizer."""
    rows = open_rows(run_spec(small.root, small.config(model, {"_target_": ZERO}, 1)))
    network = LlamaForCausalLM.from_pretrained(small.root / model).train()
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
    )
    found = []
    for step, factor in enumerate([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3]):
        picked = [rows.sample(step * GLOBAL_BATCH + place) for place in range(GLOBAL_BATCH)]
        loss = by_document(network, picked)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), 0.2)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * factor
        optimizer.step()
        optimizer.zero_grad()
        found.append((loss.item(), norm.item()))
    return found


def by_document(network: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """The mean loss over trained tokens, each document computed by itself."""
    total, trained = torch.zeros(()), 0
    for row in rows:
        begins = np.flatnonzero(row.positions == 0)[1:]
        for ids, labels in zip(
            np.split(row.input_ids, begins), np.split(row.labels, begins), strict=True
        ):
            count = int((labels[1:] != -100).sum())
            if count:
                tensors = {
                    "input_ids": torch.tensor(ids)[None],
                    "labels": torch.tensor(labels)[None],
                }
                total = total + network(**tensors, use_cache=False).loss * count
                trained += count
    return total / trained


def check_losses(
    small: Small, trained: Trained, model: str, layout: str, run: str | None = None
) -> None:
    metrics = trained.metrics(run or f"{model}-{layout}")
    expected = plain_loop(small, model)
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in metrics] == pytest.approx([e[0] for e in expected], abs=1e-5)
    norms = [line["grad_norm"] for line in metrics]
    assert norms == pytest.approx([e[1] for e in expected], rel=1e-4)
    assert min(norms) > 0.2, "the gradient must be clipped for the test to see how"


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", [name for name in layouts(2) if "recomputed" not in name])
def test_two_ranks_train_as_one_process(
    small: Small, on_two: Trained, model: str, layout: str
) -> None:
    check_losses(small, on_two, model, layout)


def test_every_process_group_has_the_runs_timeout(on_two: Trained) -> None:
    """Those that DeepSpeed makes for a pipeline too, and all that earlier cases left."""
    for seen in on_two.seen("tied-pipe2-data1-zero1"):
        assert len(seen["timeouts"]) > 5
        assert set(seen["timeouts"]) == {1800 + world.MARGIN}


def test_only_stages_that_read_no_data_ask_a_device_for_positions(
    on_two: Trained, on_four: Trained
) -> None:
    """Which waits for it, each micro-batch."""
    for layout in ("zero1", "zero3", "zero3-recomputed", "pipe2-data1-zero1", "pipe1-data2"):
        for seen in on_two.seen(f"untied-{layout}"):
            assert seen["known"] > STEPS and seen["read_back"] == 0
    ends = [seen["read_back"] for seen in on_four.seen("untied-pipe4-data1")]
    assert ends[0] == ends[3] == 0 and min(ends[1:3]) > STEPS


@pytest.mark.parametrize("layout", ["pipe2-recomputed", "zero3-recomputed"])
def test_recomputing_activations_changes_nothing(
    small: Small, on_two: Trained, layout: str
) -> None:
    check_losses(small, on_two, "untied", layout)


def test_replicas_read_disjoint_samples_together_the_batch(on_two: Trained) -> None:
    for layout in ("zero0", "zero1", "zero2", "zero3", "pipe1-data2"):
        by_rank = [seen["samples"] for seen in on_two.seen(f"untied-{layout}")]
        for step in range(STEPS):
            first, second = (samples[step * 4 : step * 4 + 4] for samples in by_rank)
            batch = range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)
            assert not set(first) & set(second)
            assert sorted(first + second) == list(batch)


def test_the_ends_of_a_pipeline_read_the_same_samples(on_four: Trained) -> None:
    # ranks by stage, then by replica
    first, also_first, last, also_last = (
        seen["samples"] for seen in on_four.seen("tied-pipe2-data2-zero1")
    )
    assert first == last and also_first == also_last
    assert sorted(first + also_first) == list(range(STEPS * GLOBAL_BATCH))
    middle = [seen["samples"] for seen in on_four.seen("tied-pipe4-data1")[1:3]]
    assert middle == [[], []]


def test_a_stage_reads_the_bytes_of_its_own_layers_only(small: Small, on_four: Trained) -> None:
    tensors = load_file(small.root / "untied" / "model.safetensors")
    size = {name: tensor.nbytes for name, tensor in tensors.items()}
    layer = sum(bytes_ for name, bytes_ in size.items() if ".layers.0." in name)
    embedding, norm = size["model.embed_tokens.weight"], size["model.norm.weight"]
    read = on_four.seen("untied-pipe4-data1")[0]["report"]["bytes_read"]
    assert read == [embedding + layer, layer, layer, layer + norm + embedding]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", layouts(4))
def test_four_ranks_train_as_one_process(
    small: Small, on_four: Trained, model: str, layout: str
) -> None:
    check_losses(small, on_four, model, layout)
