"""Every family trained on ranks: by pipeline and by ZeRO as by its published model in one
process, saved and exported without a bit's difference."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import easyllm.models.custom  # noqa: F401
from easyllm.data.dataset.rows import open_rows
from easyllm.errors import UserError
from easyllm.evaluation.verify.verify import verify
from easyllm.models.layers import causal_loss
from easyllm.spec.checks import problems
from easyllm.stages import load
from easyllm.stages.base import Rank
from easyllm.training.checkpointing.checkpoints import newest
from easyllm.training.export.hf import export
from tests.models.small import SMALL, Reference, save, tensors
from tests.support import merged, run_spec
from tests.training.conftest import (
    GLOBAL_BATCH,
    PIPELINE,
    ZERO,
    Small,
    Trained,
    launch,
)

STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "pipe2": {"_target_": PIPELINE},
    "pipe1": {"_target_": PIPELINE, "pipeline_stages": 1},
    "zero3": {"_target_": ZERO, "zero_stage": 3},
}
SPLITS: dict[str, dict[str, Any]] = {
    "uniform": {"partition": "uniform"},
    "balanced": {"partition": "balanced"},
    "bounds1": {"stage_boundaries": [1]},
    "bounds3": {"stage_boundaries": [3]},
}
"""Where four layers can be split in two."""
MODERN = {"qwen": "Qwen2ForCausalLM", "baichuan_7b": "LlamaForCausalLM",
          "baichuan2_7b": "LlamaForCausalLM"}  # fmt: skip
EVERYWHERE = ("llama", "smollm2", "baichuan2_13b")
"""Families, with tied heads and with ALiBi among them, for what depends on little else."""
EXACT = {"bfloat16": ("bfloat16", "zero3"), "float16": ("float32", "pipe2")}
"""Types of files, one to train in that holds their every value, and a layout."""


@dataclass(frozen=True)
class Families:
    """Folders of the published models, and what the ranks made of them."""

    small: Small
    trained: Trained


def case(small: Small, name: str, layout: dict[str, Any]) -> dict[str, Any]:
    """A run of ``STEPS`` steps."""
    config = small.config(name, layout, 2)
    training = {"steps": STEPS, "gradient_clipping": 0.0, "evaluate": {"fraction": 0.0}}
    return merged(config, {"training": training})


def layouts(name: str) -> list[str]:
    return [layout for layout in LAYOUTS if layout != "pipe1" or name in EVERYWHERE]


def dtypes(name: str) -> list[str]:
    return [dtype for dtype in EXACT if dtype == "bfloat16" or name in EVERYWHERE]


@pytest.fixture(scope="session")
def families(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Families:
    cases: list[dict[str, Any]] = []
    for name in SMALL:
        save(name, small.root / name)
        for layout in layouts(name):
            settings = LAYOUTS[layout]
            cases.append({"name": f"{name}-{layout}", "config": case(small, name, settings)})
        for dtype in dtypes(name):
            held, layout = EXACT[dtype]
            folder = save(name, small.root / f"{name}-{dtype}", getattr(torch, dtype))
            config = merged(case(small, name, LAYOUTS[layout]), {"training": {"steps": 0}})
            model = {"path": str(folder), "dtype": held}
            cases.append({"name": f"{name}-{dtype}",
                          "config": merged(config, {"model": model})})  # fmt: skip
        if name not in EVERYWHERE:
            continue
        fresh = {"init": "random", "path": None, "config": SMALL[name]}
        for layout in ("pipe2", "zero3"):
            config = merged(case(small, name, LAYOUTS[layout]), {"training": {"steps": 0}})
            cases.append({"name": f"{name}-fresh-{layout}",
                          "config": merged(config, {"model": fresh})})  # fmt: skip
    for kind, write in (("shards", in_shards), ("bins", in_bins)):
        write(small.root / "llama", small.root / f"llama-{kind}")
        cases.append({"name": f"llama-{kind}",
                      "config": case(small, f"llama-{kind}", LAYOUTS["pipe2"])})  # fmt: skip
    for split, settings in SPLITS.items():
        for name in ("smollm2", "baichuan2_13b"):
            layout = {"_target_": PIPELINE, **settings}
            cases.append({"name": f"{name}-{split}", "config": case(small, name, layout)})
    return Families(small, launch(tmp_path_factory.mktemp("families"), 2, cases))


def in_shards(model: Path, folder: Path) -> None:
    """Small ones: a matrix or a few vectors each."""
    LlamaForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size="1KB")


def in_bins(model: Path, folder: Path) -> None:
    """Two ``.bin`` files, the halves of the model."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    found: tuple[dict[str, torch.Tensor], ...] = ({}, {})
    for name, tensor in tensors(model).items():
        first = "embed" in name or ".layers.0." in name or ".layers.1." in name
        found[0 if first else 1][name] = tensor
    index = {}
    for number, part in enumerate(found, 1):
        file = f"pytorch_model-{number:05}-of-00002.bin"
        torch.save(part, folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "pytorch_model.bin.index.json").write_text(text, "utf-8")


@cache
def plain_losses(root: Path, name: str) -> list[float]:
    """Losses of the published model under torch's AdamW, each document by itself."""
    small = Small(root)
    run = run_spec(root, case(small, name, LAYOUTS["zero3"]))
    rows, reference = open_rows(run), Reference(name, root / name)
    parameters = list(reference.weights.values())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.95),
    )
    found = []
    for step in range(STEPS):
        picked = [rows.sample(step * GLOBAL_BATCH + place) for place in range(GLOBAL_BATCH)]
        trained = sum(int((row.labels[1:] != -100).sum()) for row in picked)
        loss = torch.zeros(())
        for row in picked:
            begins = np.flatnonzero(row.positions == 0)[1:]
            for ids, labels in zip(
                np.split(row.input_ids, begins), np.split(row.labels, begins), strict=True
            ):
                if (labels[1:] != -100).any():
                    logits = reference.logits(torch.tensor(ids)[None])
                    loss = loss + causal_loss(logits, torch.tensor(labels)[None], 1 / trained)
        loss.backward()
        lr = run.training.optimizer.lr * run.training.schedule.factor(step, STEPS)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def losses(families: Families, case: str) -> list[float]:
    return [line["loss"] for line in families.trained.metrics(case)]


@pytest.mark.parametrize(("name", "layout"), [(n, each) for n in SMALL for each in layouts(n)])
def test_every_layout_trains_the_published_model(
    families: Families, name: str, layout: str
) -> None:
    expected = plain_losses(families.small.root, name)
    assert expected[0] - expected[-1] > 1e-2, "the steps must be felt for the test to see them"
    assert losses(families, f"{name}-{layout}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["smollm2", "baichuan2_13b"])
def test_every_split_trains_the_same(families: Families, name: str, split: str) -> None:
    expected = plain_losses(families.small.root, name)
    assert losses(families, f"{name}-{split}") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", ["shards", "bins"])
def test_a_rank_opens_the_files_and_reads_the_bytes_of_its_own_layers(
    families: Families, kind: str
) -> None:
    case = f"llama-{kind}"
    assert losses(families, case) == losses(families, "llama-pipe2")
    report = families.trained.seen(case)[0]["report"]
    sizes = {name: tensor.nbytes for name, tensor in tensors(families.small.root / "llama").items()}
    first = [n for n in sizes if "embed" in n or ".layers.0." in n or ".layers.1." in n]
    rest = [name for name in sizes if name not in first]
    assert report["bytes_read"] == [sum(sizes[n] for n in part) for part in (first, rest)]
    (index,) = (families.small.root / case).glob("*.index.json")
    files = json.loads(index.read_text("utf-8"))["weight_map"]
    opened = [len({files[name] for name in part}) for part in (first, rest)]
    assert report["files_read"] == opened
    assert opened == [1, 1] if kind == "bins" else min(opened) > 10


def saved(families: Families, case: str) -> Path:
    checkpoint, _ = newest(families.trained.root / case / "run" / "checkpoints")
    assert checkpoint is not None
    return checkpoint.weights


@pytest.mark.parametrize(("name", "dtype"), [(n, each) for n in SMALL for each in dtypes(n)])
def test_what_was_loaded_is_exported_bit_by_bit(
    families: Families, tmp_path: Path, name: str, dtype: str
) -> None:
    folder = families.trained.root / f"{name}-{dtype}"
    checkpoint, _ = newest(folder / "run" / "checkpoints")
    assert checkpoint is not None
    settings = {"export": {"dtype": dtype if EXACT[dtype][0] != dtype else None}}
    export(checkpoint, tmp_path / "out", run_spec(tmp_path, settings))
    before = tensors(families.small.root / f"{name}-{dtype}")
    after = tensors(tmp_path / "out")
    assert after.keys() == before.keys()
    for tensor, value in before.items():
        assert after[tensor].dtype == value.dtype and torch.equal(after[tensor], value), tensor
    config = json.loads((tmp_path / "out" / "config.json").read_text("utf-8"))
    published = json.loads(
        (families.small.root / f"{name}-{dtype}" / "config.json").read_text("utf-8")
    )
    assert config["architectures"] == published["architectures"]
    assert config["dtype"] == dtype
    kept = set(published) - {"dtype", "transformers_version", "rope_theta", "rope_scaling",
                             "bos_token_id", "eos_token_id", "pad_token_id"}  # fmt: skip
    assert {key: config.get(key) for key in kept} == {key: published[key] for key in kept}


@pytest.mark.parametrize("name", EVERYWHERE)
def test_random_weights_are_the_same_in_every_layout(families: Families, name: str) -> None:
    first, second = (
        tensors(saved(families, f"{name}-fresh-{layout}")) for layout in ("pipe2", "zero3")
    )
    assert first.keys() == second.keys() == tensors(families.small.root / name).keys()
    assert all(torch.equal(first[tensor], second[tensor]) for tensor in first)


@pytest.mark.parametrize("name", SMALL)
def test_exports_compute_what_was_trained(families: Families, tmp_path: Path, name: str) -> None:
    """In transformers, the native and the modern layout alike."""
    checkpoint, _ = newest(families.trained.root / f"{name}-pipe2" / "run" / "checkpoints")
    assert checkpoint is not None
    ids = torch.randint(0, 400, (2, 40))
    with torch.no_grad():
        found = {}
        for layout in ("native", "canonical"):
            if layout == "canonical" and name.endswith("13b"):
                continue
            run = run_spec(tmp_path, {"export": {"layout": layout}})
            export(checkpoint, tmp_path / layout, run)
            model = AutoModelForCausalLM.from_pretrained(
                tmp_path / layout, dtype=torch.float32
            ).eval()
            found[layout] = model(input_ids=ids).logits
            carried = sorted(file.name for file in (tmp_path / layout).glob("*.py"))
            config = json.loads((tmp_path / layout / "config.json").read_text("utf-8"))
            if layout == "canonical" and name in MODERN:
                assert config["architectures"] == [MODERN[name]] and "auto_map" not in config
            custom = layout == "native" and SMALL[name]["model_type"] in ("qwen", "baichuan")
            own = ["both_transformers.py", f"modeling_{SMALL[name]['model_type']}.py"]
            assert carried == (own if custom else [])
        reference = Reference(name, tmp_path / "native").logits(ids)
    for logits in found.values():
        torch.testing.assert_close(logits, reference, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SMALL)
def test_nothing_differs_on_the_way_from_training_to_answers(
    families: Families, tmp_path: Path, name: str
) -> None:
    """As ``stages=[verify]`` compares it: checkpoint, export, the other layout, the engine."""
    few = {"verify": {"documents": 1, "new_tokens": 4}}
    places = {"export": {"output": str(tmp_path / "export")}}
    config = merged(case(families.small, name, LAYOUTS["pipe2"]), merged(few, places))
    run = run_spec(families.trained.root / f"{name}-pipe2", config)
    load("export").work(run, Rank())
    found = {comparison.name: comparison for comparison in verify(run).comparisons}
    assert [comparison for comparison in found.values() if comparison.status == "differs"] == []
    skipped = {comparison.name for comparison in found.values() if comparison.status != "same"}
    assert skipped == {"held-out loss"} | ({"layout"} if name.endswith("13b") else set())
    assert ("layout" in found) is (SMALL[name]["model_type"] in ("qwen", "baichuan"))


def test_alibi_has_no_modern_layout(families: Families, tmp_path: Path) -> None:
    checkpoint, _ = newest(families.trained.root / "baichuan_13b-pipe2" / "run" / "checkpoints")
    assert checkpoint is not None
    modern = {"export": {"layout": "canonical"}, "stages": ["export"]}
    with pytest.raises(UserError, match="ALiBi positions exist in no other layout"):
        export(checkpoint, tmp_path / "out", run_spec(tmp_path, modern))
    family = {"_target_": "easyllm.models.families.Baichuan"}
    model = {"init": "random", "config": SMALL["baichuan_13b"], "family": family}
    told = problems(run_spec(tmp_path, {**modern, "model": model, "data": {"seq_len": 64}}))
    assert [problem.key for problem in told] == ["export.layout"]
