"""What happens to a run: stopped, damaged, prolonged, mistaken; and what it leaves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from easyllm.errors import UserError
from easyllm.paths import RunPaths
from easyllm.stages import load
from easyllm.stages.base import Rank
from tests.support import LLAMA, merged, run_spec
from tests.training.conftest import GLOBAL_BATCH, MODELS, RESUMED, STEPS, Small, Trained


def losses(trained: Trained, case: str, run: str = "") -> list[float]:
    return [line["loss"] for line in trained.metrics(case, run)]


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    files = (checkpoint / "weights").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def exported(
    small: Small, trained: Trained, run: str, model: str = "tied", **export: object
) -> Path:
    """The export of a run's newest checkpoint."""
    config = merged(small.config(model, RESUMED["pipe"], 2), {"export": export})
    spec = run_spec(trained.root / run, config)
    metrics = load("export").work(spec, Rank())
    assert metrics["folder"] == str(RunPaths(spec).export)
    return RunPaths(spec).export


@pytest.mark.parametrize("layout", RESUMED)
def test_a_stopped_run_goes_on_as_if_it_had_not_been(many_runs: Trained, layout: str) -> None:
    stopped = many_runs.seen(f"stopped-{layout}", f"broken-{layout}")
    assert [seen["error"] for seen in stopped] == [
        "Stopped: stopped by a signal; saved at step 2 of 4"
    ] * 2
    resumed = many_runs.seen(f"resumed-{layout}", f"broken-{layout}")
    assert min(resumed[0]["samples"]) == 2 * GLOBAL_BATCH
    assert losses(many_runs, "", f"broken-{layout}") == losses(many_runs, f"whole-{layout}")
    whole, broken = (
        many_runs.seen(case, run)[0]["report"]["eval_loss"]
        for case, run in ((f"whole-{layout}", ""), (f"resumed-{layout}", f"broken-{layout}"))
    )
    assert whole == broken


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layout", RESUMED)
def test_no_steps_change_no_bit(small: Small, many_runs: Trained, layout: str, model: str) -> None:
    folder = exported(small, many_runs, f"untrained-{model}-{layout}", model)
    before = load_file(small.root / model / "model.safetensors")
    after = load_file(folder / "model.safetensors")
    assert set(after) == set(before)
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name


@pytest.mark.parametrize("layout", RESUMED)
def test_the_export_has_the_loss_that_training_told(
    small: Small, many_runs: Trained, layout: str
) -> None:
    folder = exported(small, many_runs, f"whole-{layout}")
    model = AutoModelForCausalLM.from_pretrained(folder)
    total, count = 0.0, 0
    for line in (folder.parent / "heldout.jsonl").read_text("utf-8").splitlines():
        row = json.loads(line)
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        trained = int((labels[:, 1:] != -100).sum())
        total += model(input_ids=ids, labels=labels).loss.item() * trained
        count += trained
    told = many_runs.seen(f"whole-{layout}")[0]["report"]["eval_loss"]
    assert told == many_runs.metrics(f"whole-{layout}")[-1]["eval_loss"]
    assert total / count == pytest.approx(told, abs=1e-4)


def flip(file: Path) -> None:
    """Turn a bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_export_is_whole(small: Small, many_runs: Trained) -> None:
    checkpoint = many_runs.root / "whole-pipe" / "run" / "checkpoints" / "step-00000004"
    weights = next(checkpoint.glob("weights/*.safetensors"))
    flip(weights)
    with pytest.raises(UserError, match=f"the content of weights/{weights.name} is not what was"):
        exported(small, many_runs, "whole-pipe")
    flip(weights)
    flip(checkpoint / "optimizer" / "rank-00000.safetensors")  # which no export reads
    folder = exported(small, many_runs, "whole-pipe", dtype="bfloat16", max_shard_gb=6e-5)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert max(shard.stat().st_size for shard in shards) < 6e-5 * 1e9 * 1.2
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.bfloat16
    assert model.generation_config.eos_token_id is not None
    assert AutoTokenizer.from_pretrained(folder)("the cat").input_ids


@pytest.mark.parametrize("layout", RESUMED)
def test_bfloat16_trains_nearly_the_same(many_runs: Trained, layout: str) -> None:
    assert losses(many_runs, f"bf16-{layout}")[:4] == pytest.approx(
        losses(many_runs, f"whole-{layout}"), abs=0.03
    )
    weights = next(
        (many_runs.root / f"bf16-{layout}").glob("run/checkpoints/*/weights/*.safetensors")
    )
    assert {tensor.dtype for tensor in load_file(weights).values()} == {torch.bfloat16}


def test_a_damaged_checkpoint_is_skipped(many_runs: Trained) -> None:
    samples = many_runs.seen("damaged", "often")[0]["samples"]
    assert min(samples) == (STEPS - 1) * GLOBAL_BATCH
    log = many_runs.log(0)
    assert f"step-{STEPS:08} is damaged: weights/model" in log
    assert f"bytes; resuming from step {STEPS - 1}" in log


def test_what_is_done_is_not_done_again(many_runs: Trained) -> None:
    again = many_runs.seen("again", "often")[0]
    assert again["samples"] == []
    report = many_runs.seen("damaged", "often")[0]["report"]
    same = ("steps", "tokens", "last_loss", "eval_loss", "checkpoint")
    assert {key: again["report"][key] for key in same} == {key: report[key] for key in same}


def test_more_steps_go_on(many_runs: Trained) -> None:
    samples = many_runs.seen("longer", "often")[0]["samples"]
    assert min(samples) == STEPS * GLOBAL_BATCH
    lines = [
        json.loads(line)
        for line in (many_runs.root / "often" / "run" / "metrics.1.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 2))
    assert [line["step"] for line in lines if "eval_loss" in line] == [2, 4, 5, 6]
    kept = sorted(
        path.name for path in (many_runs.root / "often" / "run" / "checkpoints.1").iterdir()
    )
    assert kept == [f"step-{step:08}" for step in (STEPS, STEPS + 1)]


@pytest.mark.parametrize(
    ("case", "told"),
    [
        ("flipped", "the content of optimizer/rank-00001.safetensors is not what was saved"),
        ("bereft", "optimizer/rank-00001.safetensors is not there"),
    ],
)
def test_a_damaged_share_of_the_state_is_skipped(many_runs: Trained, case: str, told: str) -> None:
    samples = many_runs.seen(case, "often")[0]["samples"]
    assert min(samples) == STEPS * GLOBAL_BATCH
    log = many_runs.log(0)
    assert f"step-{STEPS + 1:08} is damaged: {told}; resuming from step {STEPS}" in log
    before, after = (
        many_runs.seen(name, "often")[0]["report"]["last_loss"] for name in ("longer", case)
    )
    assert before == after


def test_weights_alone_begin_anew_and_go_on_exactly(many_runs: Trained) -> None:
    stopped, resumed = (many_runs.seen(case, "often")[0] for case in ("weights-stopped", "weights"))
    assert stopped["error"] == "Stopped: stopped by a signal; saved at step 2 of 3"
    assert min(stopped["samples"]) == 0 and min(resumed["samples"]) == 2 * GLOBAL_BATCH
    lines = (many_runs.root / "often" / "run" / "metrics.2.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    # the same samples as the first step of all, with weights that have learnt
    assert first["loss"] < losses(many_runs, "whole-zero1")[0] - 0.1


def test_never_begins_afresh_and_removes_nothing(many_runs: Trained) -> None:
    root = many_runs.root / "often" / "run"
    lines = many_runs.metrics("never", "often")
    assert [line["step"] for line in lines] == [1, 2, 3]
    # the first step of any run of this model, up to its learning rate
    assert lines[0]["loss"] == losses(many_runs, "whole-zero1")[0]
    assert sorted(path.name for path in root.glob("checkpoints*")) == [
        "checkpoints",
        "checkpoints.1",
        "checkpoints.2",
    ]
    assert sorted(path.name for path in root.glob("metrics*")) == [
        "metrics.1.jsonl",
        "metrics.2.jsonl",
        "metrics.jsonl",
    ]


@pytest.mark.parametrize(
    ("case", "run", "words"),
    [
        ("shorter", "often", ("training.steps: then 6 done, now 2", "step-00000006", "run_dir")),
        ("other-data", "often", ("data: then ", "training.resume=weights", "run_dir")),
        (
            "faster",
            "often",
            (
                "training.optimizer.lr: then 0.003, now 0.01\n",
                "training.optimizer.beta1: then 0.9, now 0.8\n",
                "training.resume=weights",
            ),
        ),
        ("lost", "often", ("no checkpoint", "step-00000003 is damaged", "training.resume=never")),
        ("small-vocabulary", "", ("vocab_size=100", "tokens")),
        ("wild", "", ("step 2", "training.optimizer.lr", "1e+30", "on_nonfinite=skip")),
    ],
)
def test_a_mistake_is_told(many_runs: Trained, case: str, run: str, words: tuple[str, ...]) -> None:
    for seen in many_runs.seen(case, run):
        assert seen["error"].startswith("UserError")
        for word in words:
            assert word in seen["error"]


@pytest.mark.parametrize("layout", RESUMED)
def test_the_norm_is_told_where_nothing_is_clipped(many_runs: Trained, layout: str) -> None:
    clipped, unclipped = (
        many_runs.metrics(f"{kind}-{layout}")[0]["grad_norm"] for kind in ("whole", "unclipped")
    )
    assert unclipped == pytest.approx(clipped, rel=1e-5)


def test_mfu_is_speed_over_the_peak_of_all_devices(many_runs: Trained) -> None:
    report = many_runs.seen("longer", "often")[0]["report"]
    width = LLAMA["hidden_size"]
    flops = 6 * report["parameters"] + 12 * 4 * width * 48
    lines = (many_runs.root / "often" / "run" / "metrics.1.jsonl").read_text("utf-8").splitlines()
    for line in map(json.loads, lines):
        expected = line["tokens_per_second"] * flops / (2 * 0.01e12)
        assert line["mfu"] == pytest.approx(expected)
    assert "mfu" not in many_runs.metrics("whole-pipe")[0]


def test_trackers_are_fed(many_runs: Trained) -> None:
    folder = many_runs.root / "often" / "run" / "tensorboard"
    assert any("tfevents" in file.name for file in folder.iterdir())


def test_a_run_gone_wild_keeps_what_was_saved(many_runs: Trained) -> None:
    saved = [path.name for path in (many_runs.root / "wild" / "run" / "checkpoints").iterdir()]
    assert saved == ["step-00000001"]


@pytest.mark.parametrize("layout", [*RESUMED, "zero0"])
def test_a_step_without_a_finite_gradient_changes_nothing(many_runs: Trained, layout: str) -> None:
    name = f"skipping-{layout}"
    lines = many_runs.metrics(name)
    assert [line.get("skipped", False) for line in lines] == [False, True, True]
    assert [line["loss"] is None for line in lines] == [False, True, True]
    report = many_runs.seen(name)[0]["report"]
    assert report["skipped_steps"] == 2 and report["last_loss"] == lines[0]["loss"]
    first, last = (
        weights_of(many_runs.root / name / "run" / "checkpoints" / step)
        for step in ("step-00000001", "step-00000003")
    )
    for tensor in first:
        assert torch.isfinite(first[tensor]).all()
        assert torch.equal(first[tensor], last[tensor])


def test_epochs_are_counted_in_steps(many_runs: Trained) -> None:
    report = many_runs.seen("epochs")[0]["report"]
    assert 1 <= report["steps"] == len(many_runs.metrics("epochs")) < STEPS


def test_export_without_a_checkpoint_says_what_to_run(small: Small, tmp_path: Path) -> None:
    run = run_spec(tmp_path, small.config("tied", RESUMED["pipe"], 2))
    with pytest.raises(UserError, match="add train to stages"):
        load("export").work(run, Rank())
