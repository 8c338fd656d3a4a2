"""Training on one GPU: tokens a second, MFU and memory, against transformers' Trainer.

Llamas of 0.4, 1.3 and 3 billion parameters from random weights in bfloat16, CPython's language
reference as text. `easyllm` is the command that a user gives with `model.compile=true` and
attention by `--attention`, ZeRO 1 on one rank; `eager` the same with
`model.compile=false`, `free` with `training.deterministic=false`; `trainer` is transformers'
Trainer with the same model, rows, optimizer (fused AdamW) and recomputing, and attention by `sdpa`,
its weights in float32 and its computing in bfloat16 by autocast, where DeepSpeed keeps weights of
both, and `trainer_compiled` has it compile the model. Each is a process of its own, in turn; the
first WARM_UP steps do not count, a step's time is the median. Our runs are killed after their
last step: how long a checkpoint takes is another question. MFU: docs/measures.md,
for all. `--profile FOLDER` has ours profile two of their steps and keeps the tables of the slowest
operations there. A side that fails, or takes longer than `--limit` seconds, is left out and said.
`--device cpu --attention sdpa --sizes tiny` runs the same on a machine without a GPU, where the
numbers mean nothing.

The last line is one flat JSON object: `tokens_per_second_SIZE_SIDE`, `mfu_SIZE_SIDE` and
`memory_gb_SIZE_SIDE`, and, where both ran, `over_trainer_SIZE`, the tokens a second of `easyllm`
over the Trainer's, and `over_trainer_compiled_SIZE`. Exits 1 where the MFU of `easyllm` is below
its aim on a GPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MFU = 0.5
"""The aim, on an H100."""
WARM_UP = 5
SIZES = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 2, "heads": 4},
    "0.4b": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 24, "heads": 16},
    "1.3b": {"hidden_size": 2048, "intermediate_size": 5504, "num_hidden_layers": 24, "heads": 16},
    "3b": {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26, "heads": 32},
}
ROWS = {"tiny": (2, 4), "0.4b": (8, 4), "1.3b": (8, 4), "3b": (1, 16)}
"""Rows of a micro-batch, and micro-batches a step. That 3 billion fit an H100 without recomputing
is an estimate: 71 GB of weights, gradients and states, 5 GB of activations a row."""
OURS = {
    "easyllm": ["model.compile=true"],
    "eager": ["model.compile=false"],
    "free": ["model.compile=true", "training.deterministic=false"],
}
THEIRS = ("trainer", "trainer_compiled")


class Failed(Exception):
    """A side came to no numbers."""


def shape(size: str) -> dict[str, int]:
    """The keys of the model's configuration."""
    found = dict(SIZES[size])
    heads = found.pop("heads")
    context = {"max_position_embeddings": 4096, "vocab_size": 32000}
    return {**found, "num_attention_heads": heads, "num_key_value_heads": heads, **context}


def words(asked: argparse.Namespace, size: str, text: Path, run: Path) -> list[str]:
    """Our command."""
    rows, accumulation = ROWS[size]
    hardware, dtype = ["hardware=h100"], "bfloat16"
    if asked.device == "cpu":
        dtype = "float32"  # many CPUs multiply 16-bit numbers hundreds of times as slowly
        hardware = ["hardware=cpu", "hardware.devices_per_node=1", "+hardware.peak_tflops=0.1"]
    model = [f"model.config.{key}={value}" for key, value in shape(size).items()]
    return [
        *("+recipe=demo", "data=jsonl", f"run_dir={run}", "stages=[tokenize,train]", *hardware),
        *(f"data.sources.jsonl.path={text}", f"data.dir={text.parent / 'store'}"),
        *(*model, f"model.dtype={dtype}", f"model.attention={asked.attention}"),
        *("parallelism=zero", "~parallelism.pipeline_stages", f"data.seq_len={asked.seq_len}"),
        f"parallelism.micro_batch_size={rows}",
        f"parallelism.global_batch_size={rows * accumulation}",
        f"parallelism.checkpoint_activations={str(asked.recompute).lower()}",
        *("training.steps=10000", "training.optimizer.fused=true"),
        *("training.evaluate.fraction=0", "training.evaluate.every=null"),
        "training.checkpoint.every=null",
    ]


def text_file(asked: argparse.Namespace, root: Path) -> Path:
    """The text to train on: one document, or one a topic."""
    file = root / "reference.jsonl"
    if not file.exists():
        from pydoc_data.topics import topics

        texts = list(topics.values()) if asked.documents else ["\n\n".join(topics.values())]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return file


def easyllm(asked: argparse.Namespace, size: str, side: str, root: Path) -> dict[str, float]:
    run, log = root / f"{size}-{side}", root / "log"
    command = [sys.executable, "-m", "easyllm", *words(asked, size, text_file(asked, root), run)]
    metrics = run / "metrics.jsonl"
    begin = asked.steps - 2
    profiled = [f"+training.profile.start={begin}", "+training.profile.steps=2"]
    command += [*OURS[side], *(profiled if asked.profile else [])]
    until = time.monotonic() + asked.limit
    with log.open("wb") as out:
        started = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not (lines := whole_lines(metrics))[asked.steps - 1 :]:
                if started.poll() is not None:
                    raise Failed(f"status {started.returncode}:\n{log.read_text()[-3000:]}")
                if time.monotonic() > until:
                    raise Failed(f"took too long:\n{log.read_text()[-500:]}")
                time.sleep(0.05)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)  # its ranks die with it
                started.wait()
    if asked.profile:
        shutil.copy(next(run.glob("profile/*/rank-0.txt")), asked.profile / f"{size}-{side}.txt")
        lines = lines[: begin - 1]
    counted = [json.loads(line) for line in lines[WARM_UP : asked.steps]]
    keys = ("tokens_per_second", "mfu", "memory_gb")
    return {key: statistics.median(line[key] for line in counted) for key in keys}


def whole_lines(file: Path) -> list[str]:
    text = file.read_text("utf-8") if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def trainer(asked: argparse.Namespace, size: str, side: str, root: Path) -> dict[str, float]:
    spec = next(root.glob(f"{size}-*/run.yaml"), None)
    if spec is None:
        raise Failed("reads the rows of ours, which has not run")
    command = [sys.executable, __file__, "--trainer", size, "--spec", str(spec)]
    command += [f"--{key.replace('_', '-')}={getattr(asked, key)}"
                for key in ("device", "steps", "seq_len")]  # fmt: skip
    command += ["--recompute"] if asked.recompute else []
    command += ["--compile"] if side == "trainer_compiled" else []
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=asked.limit)
    except subprocess.TimeoutExpired:
        raise Failed("took too long") from None
    if done.returncode:
        raise Failed(f"status {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_trainer(asked: argparse.Namespace) -> dict[str, float]:
    """transformers' Trainer in this process, on the rows that our run of the same size read."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    from easyllm import runfile
    from easyllm.data.dataset.rows import open_rows
    from easyllm.models.config import family_of, hf_config
    from easyllm.training.metrics.metrics_log import flops_per_token, peak_memory

    run = runfile.load(asked.spec)
    read = open_rows(run)
    rows = [{"input_ids": row.input_ids, "labels": row.labels}
            for row in map(read.sample, range(read.per_epoch))]  # fmt: skip
    size, accumulation = ROWS[asked.trainer]
    device = torch.device(asked.device)
    torch.manual_seed(1)
    config = hf_config(run)
    config._attn_implementation = "sdpa"
    with device:
        model = LlamaForCausalLM(config).float()
    begins: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begins.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            output_dir=folder, max_steps=asked.steps, per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation, learning_rate=3e-4, max_grad_norm=1.0,
            bf16=device.type == "cuda", gradient_checkpointing=asked.recompute,
            optim="adamw_torch_fused", torch_compile=asked.compile, logging_steps=1, report_to=[],
            disable_tqdm=True, save_strategy="no", use_cpu=device.type == "cpu",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    pairs = zip(begins[WARM_UP - 1 :], begins[WARM_UP:], strict=False)
    seconds = statistics.median(end - begin for begin, end in pairs)
    speed = size * accumulation * asked.seq_len / seconds
    dimensions = family_of(run, config.model_type).shape(config.to_dict())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    flops = flops_per_token(dimensions, parameters, asked.seq_len)
    peak = run.hardware.peak_tflops
    return {
        "tokens_per_second": speed,
        "mfu": speed * flops / (peak * 1e12) if peak else 0.0,
        "memory_gb": peak_memory(device) / 1e9,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.4b", "1.3b", "3b"])
    parser.add_argument("--sides", nargs="+", choices=[*OURS, *THEIRS],
                        default=["easyllm", *THEIRS])  # fmt: skip
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--recompute", action="store_true", help="every layer, in both")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--limit", type=float, default=900.0)
    parser.add_argument("--documents", action="store_true", help="topics as documents of their own")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--trainer", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.trainer:
        print(json.dumps(run_trainer(asked)), flush=True)
        return 0
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    result: dict[str, Any] = {"attention": asked.attention, "seq_len": asked.seq_len}
    with tempfile.TemporaryDirectory() as place:
        for side in sorted(asked.sides, key=[*OURS, *THEIRS].index):
            for size in asked.sizes:
                try:
                    found = (easyllm if side in OURS else trainer)(asked, size, side, Path(place))
                except Failed as why:
                    print(f"{size:5} {side:17} failed: {why}", flush=True)
                    continue
                print(
                    f"{size:5} {side:17} {found['tokens_per_second']:10,.0f} tok/s   "
                    f"MFU {found['mfu']:.1%}   {found['memory_gb']:.1f} GB", flush=True,
                )  # fmt: skip
                result |= {f"{key}_{size}_{side}": round(value, 4) for key, value in found.items()}
    for size, side in itertools.product(asked.sizes, THEIRS):
        ours, theirs = (
            result.get(f"tokens_per_second_{size}_{name}") for name in ("easyllm", side)
        )
        if ours and theirs:
            result[f"over_{side}_{size}"] = round(ours / theirs, 3)
    reached = [result.get(f"mfu_{size}_easyllm", 0.0) for size in asked.sizes]
    print(json.dumps(result | {"mfu_aim": MFU}))
    return int(asked.device == "cuda" and "easyllm" in asked.sides and min(reached) < MFU)


if __name__ == "__main__":
    sys.exit(main())
