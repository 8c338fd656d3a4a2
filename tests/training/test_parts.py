"""Schedules, samples, stage bounds, optimizer and checkpoints' bookkeeping, without ranks."""

from __future__ import annotations

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from transformers import LlamaConfig, TrainingArguments, get_scheduler

from easyllm.errors import UserError
from easyllm.files import json_line, write_json
from easyllm.models.families import Llama
from easyllm.parallelism import deepspeed_internals
from easyllm.parallelism.layouts import Pipeline, Zero
from easyllm.parallelism.partition import bounds
from easyllm.spec.problems import SpecError
from easyllm.spec.roles import Schedule
from easyllm.stages.train import Train
from easyllm.training.checkpointing import checkpoints
from easyllm.training.metrics.metrics_log import missing_steps, read, summary
from easyllm.training.metrics.step_metrics import flops_per_token
from easyllm.training.optimizers import AdamW
from easyllm.training.sampling import samples_of
from easyllm.training.schedules import WSD, Constant, Cosine, Linear
from tests.support import LLAMA, run_spec


@pytest.mark.parametrize("replicas", [1, 2, 4])
def test_replicas_share_a_step_out(replicas: int) -> None:
    layout = Zero(global_batch_size=16, micro_batch_size=2)
    parts = [samples_of(48, layout, rank, replicas) for rank in range(replicas)]
    assert all(len(part) == layout.accumulation(replicas) for part in parts)
    assert all(len(micro) == 2 for part in parts for micro in part)
    drawn = [index for part in parts for micro in part for index in micro]
    assert sorted(drawn) == list(range(48, 64))


@pytest.mark.parametrize(
    ("schedule", "at_end"),
    [(Constant(), 1.0), (Linear(floor=0.2), 0.2), (Cosine(), 0.1), (WSD(floor=0.3), 0.3)],
)
def test_schedules_warm_up_and_reach_their_floor(schedule: Schedule, at_end: float) -> None:
    warmed = type(schedule)(**{**vars(schedule), "warmup": 0.1})
    factors = [warmed.factor(step, 100) for step in range(101)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[100] == pytest.approx(at_end)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert type(schedule)(**{**vars(schedule), "warmup": 7}).factor(7, 100) == 1.0


@pytest.mark.parametrize("warmup", [0, 1, 7, 40])
@pytest.mark.parametrize(
    ("schedule", "theirs", "specific"),
    [
        (Constant, "constant_with_warmup", {}),
        (Linear, "linear", {}),
        (functools.partial(Cosine, floor=0.0), "cosine", {}),
        (functools.partial(Cosine, floor=0.1), "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        (
            functools.partial(WSD, decay=0.25),
            "warmup_stable_decay",
            {"decay_type": "linear"},
        ),
    ],
    ids=["constant", "linear", "cosine", "cosine_with_floor", "wsd"],
)
def test_warming_up_from_zero_is_transformers_schedule(
    schedule: Callable[..., Schedule], theirs: str, specific: dict[str, Any], warmup: int
) -> None:
    total = warmup + 60
    if theirs == "warmup_stable_decay":
        specific = {**specific, "num_decay_steps": 15}
    # a peak of 1, so that its learning rates are factors
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(
        theirs, optimizer, num_warmup_steps=warmup, num_training_steps=total,
        scheduler_specific_kwargs=specific,
    )  # fmt: skip
    mine = schedule(warmup=warmup, warmup_from_zero=True)
    for step in range(total + 1):
        (expected,) = scheduler.get_last_lr()
        assert mine.factor(step, total) == pytest.approx(expected, abs=1e-12), step
        optimizer.step()
        scheduler.step()
    if warmup:
        assert mine.factor(0, total) == 0.0 < schedule(warmup=warmup).factor(0, total)


@pytest.mark.parametrize(("share", "total"), [(0.03, 100), (0.03, 1234), (0.5, 7), (0.07, 100)])
def test_a_share_of_the_steps_is_rounded_as_transformers_does(
    tmp_path: Path, share: float, total: int
) -> None:
    given = TrainingArguments(output_dir=str(tmp_path), warmup_steps=share, use_cpu=True)
    warmup = given.get_warmup_steps(total)
    assert Linear(warmup=share, warmup_from_zero=True).warmup_steps(total) == warmup
    assert Linear(warmup=share).warmup_steps(total) in (warmup, warmup - 1)


def test_wsd_is_stable_until_its_end_falls() -> None:
    factors = [WSD(decay=0.2, warmup=10).factor(step, 110) for step in range(111)]
    assert factors[10:91] == pytest.approx([1.0] * 81)
    assert factors[100] == pytest.approx(0.5) and factors[110] == 0.0
    longer = [WSD(decay=0.2, warmup=10).factor(step, 210) for step in range(91)]
    assert longer == pytest.approx(factors[:91])
    assert WSD(decay=0.0).factor(110, 110) == 1.0


def test_stages_are_balanced_and_each_has_a_decoder() -> None:
    decoders = [False, *[True] * 6, False, False]
    assert bounds([50, *[10] * 6, 0, 50], decoders, 2) == [0, 4, 9]
    # heavy ends draw no decoder layer away from the stages between them
    assert bounds([1000, *[1] * 6, 0, 1000], decoders, 4) == [0, 2, 4, 6, 9]
    with pytest.raises(ValueError, match="6 decoder layers"):
        bounds([1.0] * 9, decoders, 7)


@pytest.mark.parametrize(
    ("partition", "vocabulary", "expected"),
    [
        ("uniform", 512, [0, 3, 7]),
        # a table as large as a layer or two draws the split towards it, at either end alike
        ("parameters", 4096, [0, 3, 7]),
        # what is only looked up is no work, what is multiplied is
        ("balanced", 512, [0, 4, 7]),
    ],
)
def test_what_the_stages_get_as_much_of(
    partition: str, vocabulary: int, expected: list[int]
) -> None:
    from easyllm.models.layers import param_specs
    from easyllm.parallelism.partition import stage_bounds

    config = LlamaConfig(**{**LLAMA, "num_hidden_layers": 4, "vocab_size": vocabulary})
    layers = param_specs(Llama().layers(config, "sdpa"))
    assert stage_bounds(layers, Pipeline(partition=partition), 16) == expected  # type: ignore[arg-type]
    for given in ((1,), (3,)):
        found = stage_bounds(layers, Pipeline(partition=partition, stage_boundaries=given), 16)  # type: ignore[arg-type]
        assert found == [0, 1 + given[0], 7]
    with pytest.raises(
        UserError, match=r"parallelism.stage_boundaries=\[4\]: the model has 4 decoder"
    ):
        stage_bounds(layers, Pipeline(stage_boundaries=(4,)), 16)


def test_matrices_decay_and_vectors_do_not() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "decay": d} for d in (True, False)]
    optimizer = AdamW(weight_decay=0.3, beta2=0.5).build(groups)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.5)


def refusals(folder: Path, **config: object) -> list[str]:
    from easyllm.spec.checks import problems

    run = run_spec(folder, {"model": {"dtype": "float32"}, **config})
    return [f"{p.key}={p.value}: {p.message} {p.remedy}" for p in problems(run)]


def test_a_pipeline_refuses_to_split_gradients(tmp_path: Path) -> None:
    layout = {"_target_": "easyllm.parallelism.layouts.Pipeline", "zero_stage": 2}
    hardware = {"devices_per_node": 2, "device": "cpu"}
    told = refusals(tmp_path, parallelism=layout, hardware=hardware)
    assert len(told) == 1
    assert "parallelism.zero_stage=2" in told[0] and "parallelism=zero" in told[0]
    assert refusals(tmp_path, parallelism={**layout, "zero_stage": 1}, hardware=hardware) == []


def test_bfloat16_without_an_fp32_copy_is_refused(tmp_path: Path) -> None:
    for layout in ("Zero", "Pipeline"):
        told = refusals(
            tmp_path,
            model={"dtype": "bfloat16"},
            parallelism={"_target_": f"easyllm.parallelism.layouts.{layout}", "zero_stage": 0},
            hardware={"devices_per_node": 2},
        )
        assert len(told) == 1 and "parallelism.zero_stage=0" in told[0]


def test_layouts_say_what_they_split() -> None:
    assert [sum(Zero(zero_stage=stage).state_shards) for stage in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert [sum(Pipeline(zero_stage=stage).state_shards) for stage in (0, 1)] == [0, 1]
    assert (Pipeline(pipeline_stages=4).stages, Zero().stages) == (4, 1)


def test_flops_of_a_token() -> None:
    shape = Llama().shape(LLAMA)
    assert flops_per_token(shape, 1000, 16) == 6 * 1000 + 12 * 2 * 4 * 8 * 16


def test_metrics_survive_a_line_that_was_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = '{"step": 1, "loss": 2.5, "tokens": 8, "tokens_per_second": 4.0, "seconds": 2.0}\n'
    file.write_text(line + '{"step": 2, "lo', "utf-8")
    told = summary(read(file))
    assert (told["tokens"], told["first_loss"], told["last_loss"]) == (8, 2.5, 2.5)
    assert summary(read(tmp_path / "absent")) == {"tokens": 0, "seconds": 0.0}


def test_metrics_lose_a_damaged_line_alone(tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [b'{"step": %d}\n' % step for step in range(1, 5)]
    lines[1] = lines[1].replace(b"s", b"\xf3")
    lines[2] = lines[2].replace(b"}", b"y")
    file.write_bytes(b"".join(lines))
    assert [line["step"] for line in read(file)] == [1, 4]
    said = capfd.readouterr().err
    assert said.count("is damaged and left out") == 2 and f"{file}, line 3" in said
    file.write_text(json_line({"step": 1, "loss": 2.5}).replace("2.5", "2.7") + "\n")
    assert read(file) == [] and "line 1: is damaged" in capfd.readouterr().err


def test_metrics_that_are_lost_are_said() -> None:
    lines = [{"step": step} for step in (1, 4, 5)]
    assert missing_steps(lines, 5).startswith("the metrics of 2 steps from step 2 on are lost")
    assert missing_steps(lines[:1], 2).startswith("the metrics of step 2 are lost")
    assert missing_steps(lines[:1], 1) == missing_steps([], 0) == ""


def checkpoint(root: Path, step: int) -> Path:
    folder = checkpoints.location(root, step)
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "model.safetensors").write_bytes(b"12345")
    facts = {"step": step, "samples": 8 * step, "trained_with": {}}
    checkpoints.write_manifest(folder, facts)
    return folder


def test_the_newest_whole_checkpoint_is_found(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path) == (None, [])
    for step in (2, 9, 10):
        checkpoint(tmp_path, step)
    found, damaged = checkpoints.newest(tmp_path)
    assert found and (found.step, found.samples, damaged) == (10, 80, [])
    (found.weights / "model.safetensors").write_bytes(b"1234")
    (checkpoints.location(tmp_path, 9) / "manifest.json").unlink()
    fallback, damaged = checkpoints.newest(tmp_path)
    assert fallback and fallback.step == 2
    assert [path.name for path in damaged] == ["step-00000010", "step-00000009"]


def test_tidying_keeps_the_newest_whole_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    (checkpoints.location(tmp_path, 3) / "weights" / "model.safetensors").unlink()
    (tmp_path / ".step-00000005.77.part").mkdir()
    (tmp_path / "damaged-step-00000004").mkdir()
    (tmp_path / "damaged-step-00000007").mkdir()
    write_json(checkpoints.location(tmp_path, 6) / "manifest.json", {"files": {"gone": 1}})
    checkpoints.clear_leftovers(tmp_path)
    checkpoints.prune(tmp_path, keep=2)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["damaged-step-00000007", "step-00000002", "step-00000004", "step-00000006"]


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may remove everything; within the block this process is nobody."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_what_cannot_be_removed_ends_no_run(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as made:  # others have no way into tmp_path
        root = Path(made)
        for step in (1, 2, 3):
            checkpoint(root, step)
        for folder in (root, *filter(Path.is_dir, root.rglob("*"))):
            folder.chmod(0o777)
        locked = checkpoints.location(root, 1) / "weights"
        locked.chmod(0o555)
        with unprivileged():
            checkpoints.prune(root, keep=1)
        assert [path.name[-1] for path in checkpoints.listed(root)] == ["3", "1"]
        assert f"{locked.parent} could not be removed and is kept: " in capsys.readouterr().err
        locked.chmod(0o777)
        with unprivileged():
            checkpoints.prune(root, keep=1)
        assert [path.name[-1] for path in checkpoints.listed(root)] == ["3"]
        assert not capsys.readouterr().err


def test_every_nth_is_kept_besides_the_newest(tmp_path: Path) -> None:
    for step in range(2, 15, 2):
        checkpoint(tmp_path, step)
        checkpoints.prune(tmp_path, keep=2, keep_every=4)
    assert [path.name[-2:] for path in sorted(tmp_path.iterdir())] == ["04", "08", "12", "14"]


def test_specs_name_the_choices_of_a_stage(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="zero_stage"):
        run_spec(tmp_path, {"parallelism": {"zero_stage": 4}})


def test_train_declares_what_it_reads_and_leaves(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        (model / name).write_text("{}", "utf-8")
    stages = ["shuffle", "train"]
    config = {"stages": stages, "model": {"path": str(model)}, "training": {"steps": 7}}
    run = run_spec(tmp_path, config)
    root = tmp_path / "store"
    assert Train().inputs(run) == [
        root / "shuffled" / "manifest.json",
        model / "config.json",
        model / "model.safetensors",
    ]
    last = tmp_path / "run" / "checkpoints" / "step-00000007" / "manifest.json"
    assert Train().outputs(run) == [last]


def test_another_release_of_deepspeed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deepspeed_internals.check_version()
    for version in ("0.18.9", "0.20.0", "1.19.0"):
        monkeypatch.setattr(deepspeed, "__version__", version)
        with pytest.raises(UserError, match=f"DeepSpeed {version} is installed.*~=0.19.0"):
            deepspeed_internals.check_version()
    monkeypatch.setattr(deepspeed, "__version__", "0.19.99+abc")
    deepspeed_internals.check_version()
