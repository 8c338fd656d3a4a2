"""Training on one GPU: tokens a second, MFU and memory, against transformers' Trainer.

Llamas of 0.4, 1.3 and 3 billion parameters from random weights in bfloat16, CPython's language
reference as text. `easyllm` is the command that a user gives, ZeRO 1 on one rank; `trainer` is
transformers' Trainer with the same model, rows, optimizer (fused AdamW) and recomputing, its
weights in float32 and its computing in bfloat16 by autocast, where DeepSpeed keeps weights of
both. Both are processes of their own, in turn; the first WARM_UP steps do not count, a step's
time is the median. MFU is by the formula in the README, for both. `--device cpu --sizes tiny`
runs the same on a machine without a GPU, where the numbers mean nothing.

The last line is one flat JSON object: for each size `mfu_*`, `tokens_per_second_*`, `memory_gb_*`
and, as `over_trainer_*`, our tokens a second over the Trainer's. Exits 1 where the best MFU is
below its aim on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
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
ROWS = {"tiny": (2, False), "0.4b": (8, False), "1.3b": (8, True), "3b": (4, True)}
"""Rows of a micro-batch, and whether every layer is recomputed."""


def shape(size: str) -> dict[str, int]:
    """The keys of the model's configuration."""
    found = dict(SIZES[size])
    heads = found.pop("heads")
    context = {"max_position_embeddings": 4096, "vocab_size": 32000}
    return {**found, "num_attention_heads": heads, "num_key_value_heads": heads, **context}


def words(asked: argparse.Namespace, size: str, text: Path, run: Path) -> list[str]:
    """Our command."""
    rows, recomputed = ROWS[size]
    hardware = ["hardware=h100"]
    if asked.device == "cpu":
        hardware = ["hardware=cpu", "hardware.devices_per_node=1", "+hardware.peak_tflops=0.1"]
    model = [f"model.config.{key}={value}" for key, value in shape(size).items()]
    return [
        *("+recipe=demo", "data=jsonl", f"run_dir={run}", "stages=[tokenize,train]", *hardware),
        *(f"data.sources.jsonl.path={text}", f"data.dir={text.parent / 'store'}"),
        *(*model, "model.dtype=bfloat16", f"model.attention={asked.attention}"),
        *("parallelism=zero", "~parallelism.pipeline_stages", f"data.seq_len={asked.seq_len}"),
        f"parallelism.micro_batch_size={rows}",
        f"parallelism.global_batch_size={rows * asked.accumulation}",
        f"parallelism.checkpoint_activations={str(recomputed).lower()}",
        *(f"training.steps={asked.steps}", "training.optimizer.fused=true"),
        *("training.evaluate.fraction=0", "training.evaluate.every=null"),
        "training.checkpoint.every=null",
    ]


def easyllm(asked: argparse.Namespace, size: str, root: Path) -> dict[str, float]:
    text, run = root / "reference.jsonl", root / size
    if not text.exists():
        from pydoc_data.topics import topics

        text.write_text(json.dumps({"text": "\n\n".join(topics.values())}) + "\n", "utf-8")
    command = [sys.executable, "-m", "easyllm", *words(asked, size, text, run)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"status {done.returncode}:\n{done.stdout.decode()[-4000:]}")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    counted = lines[WARM_UP:]
    keys = ("tokens_per_second", "mfu", "memory_gb")
    return {key: statistics.median(line[key] for line in counted) for key in keys}


def trainer(asked: argparse.Namespace, size: str, root: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--trainer", size, "--spec", str(root / size / "run.yaml")]
    command += [f"--{key.replace('_', '-')}={getattr(asked, key)}"
                for key in ("device", "steps", "seq_len", "accumulation", "attention")]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"the Trainer ended with status {done.returncode}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_trainer(asked: argparse.Namespace) -> dict[str, float]:
    """transformers' Trainer in this process, on the rows that our run of the same size read."""
    import torch
    from transformers import LlamaForCausalLM, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments

    from easyllm import runfile
    from easyllm.data.rows import open_rows
    from easyllm.models.config import family_of, hf_config
    from easyllm.training.metrics import flops_per_token, peak_memory

    run = runfile.load(asked.spec)
    read = open_rows(run)
    rows = [{"input_ids": row.input_ids, "labels": row.labels}
            for row in map(read.sample, range(read.per_epoch))]  # fmt: skip
    size, recomputed = ROWS[asked.trainer]
    device = torch.device(asked.device)
    torch.manual_seed(1)
    config = hf_config(run)
    config._attn_implementation = asked.attention
    model = LlamaForCausalLM(config).to(device, torch.float32)
    begins: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if device.type == "cuda":
                torch.cuda.synchronize()
            begins.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = Arguments(
            output_dir=folder, max_steps=asked.steps, per_device_train_batch_size=size,
            gradient_accumulation_steps=asked.accumulation, learning_rate=3e-4, max_grad_norm=1.0,
            bf16=True, gradient_checkpointing=recomputed, optim="adamw_torch_fused",
            logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no",
            use_cpu=device.type == "cpu",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[Clock()]).train()
    pairs = zip(begins[WARM_UP - 1 :], begins[WARM_UP:], strict=False)
    seconds = statistics.median(end - begin for begin, end in pairs)
    speed = size * asked.accumulation * asked.seq_len / seconds
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
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--trainer", choices=SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.trainer:
        print(json.dumps(run_trainer(asked)), flush=True)
        return 0
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])
    result: dict[str, Any] = {"attention": asked.attention, "seq_len": asked.seq_len}
    with tempfile.TemporaryDirectory() as place:
        for size in asked.sizes:
            both = {"easyllm": easyllm(asked, size, Path(place))}
            both["trainer"] = trainer(asked, size, Path(place))
            for side, found in both.items():
                print(
                    f"{size:5} {side:8} {found['tokens_per_second']:10,.0f} tok/s   "
                    f"MFU {found['mfu']:.1%}   {found['memory_gb']:.1f} GB", flush=True,
                )  # fmt: skip
            result |= {f"{key}_{size}": round(value, 4) for key, value in both["easyllm"].items()}
            ours, theirs = (found["tokens_per_second"] for found in both.values())
            result[f"over_trainer_{size}"] = round(ours / theirs, 3)
    best = max(result[f"mfu_{size}"] for size in asked.sizes)
    print(json.dumps(result | {"mfu": best, "mfu_aim": MFU}))
    return int(asked.device == "cuda" and best < MFU)


if __name__ == "__main__":
    sys.exit(main())
