"""Training on one GPU: tokens a second, MFU and memory, against transformers' Trainer.

Llamas of 0.4, 1.3 and 3 billion parameters from random weights in bfloat16, CPython's language
reference as text. `easyllm` is the command that a user gives, ZeRO 1 on one rank, `compiled` the
same with `model.compile=true`, `free` with `training.deterministic=false` as well; `trainer` is
transformers' Trainer with the same model, rows, optimizer (fused AdamW) and recomputing, its
weights in float32 and its computing in bfloat16 by autocast, where DeepSpeed keeps weights of
both, and `trainer_compiled` has it compile the model. Each is a process of its own, in turn; the
first WARM_UP steps do not count, a step's time is the median. Our runs are killed after their
last step: how long a checkpoint takes is another question. MFU is by the formula in the README,
for all. `--device cpu --sizes tiny` runs the same on a machine without a GPU, where the numbers
mean nothing.

The last line is one flat JSON object: `tokens_per_second_SIZE_SIDE`, `mfu_SIZE_SIDE` and
`memory_gb_SIZE_SIDE`, and, where both ran, `over_trainer_SIZE`, the tokens a second of `easyllm`
over the Trainer's. Exits 1 where the best MFU is below its aim on a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
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
ROWS = {"tiny": (2, False), "0.4b": (8, False), "1.3b": (8, False), "3b": (4, True)}
"""Rows of a micro-batch, and whether every layer is recomputed: ours then takes less than 80 GB."""
OURS = {
    "easyllm": [],
    "compiled": ["model.compile=true"],
    "free": ["model.compile=true", "training.deterministic=false"],
}
THEIRS = ("trainer", "trainer_compiled")


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
    with log.open("wb") as out:
        started = subprocess.Popen(
            [*command, *OURS[side]], stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while not (lines := whole_lines(metrics))[asked.steps - 1 :]:
                if started.poll() is not None:
                    raise SystemExit(f"status {started.returncode}:\n{log.read_text()[-6000:]}")
                time.sleep(0.05)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)  # its ranks die with it
                started.wait()
    counted = [json.loads(line) for line in lines[WARM_UP : asked.steps]]
    keys = ("tokens_per_second", "mfu", "memory_gb")
    return {key: statistics.median(line[key] for line in counted) for key in keys}


def whole_lines(file: Path) -> list[str]:
    text = file.read_text("utf-8") if file.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def trainer(asked: argparse.Namespace, size: str, side: str, root: Path) -> dict[str, float]:
    spec = next(path for path in root.glob(f"{size}-*/run.yaml"))
    command = [sys.executable, __file__, "--trainer", size, "--spec", str(spec)]
    command += [f"--{key.replace('_', '-')}={getattr(asked, key)}"
                for key in ("device", "steps", "seq_len", "accumulation", "attention")]  # fmt: skip
    command += ["--compile"] if side == "trainer_compiled" else []
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
            gradient_accumulation_steps=asked.accumulation, learning_rate=3e-4, max_grad_norm=1.0,
            bf16=True, gradient_checkpointing=recomputed, optim="adamw_torch_fused",
            torch_compile=asked.compile, logging_steps=1, report_to=[], disable_tqdm=True,
            save_strategy="no", use_cpu=device.type == "cpu",
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
    parser.add_argument("--sides", nargs="+", choices=[*OURS, *THEIRS],
                        default=["easyllm", "compiled", "trainer"])  # fmt: skip
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--accumulation", type=int, default=4)
    parser.add_argument("--attention", default="sdpa")
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
        for size in asked.sizes:
            for side in sorted(asked.sides, key=[*OURS, *THEIRS].index):
                found = (easyllm if side in OURS else trainer)(asked, size, side, Path(place))
                print(
                    f"{size:5} {side:17} {found['tokens_per_second']:10,.0f} tok/s   "
                    f"MFU {found['mfu']:.1%}   {found['memory_gb']:.1f} GB", flush=True,
                )  # fmt: skip
                result |= {f"{key}_{size}_{side}": round(value, 4) for key, value in found.items()}
            if {"easyllm", "trainer"} <= set(asked.sides):
                ours, theirs = (
                    result[f"tokens_per_second_{size}_{side}"] for side in ("easyllm", "trainer")
                )
                result[f"over_trainer_{size}"] = round(ours / theirs, 3)
    best = max(value for key, value in result.items() if key.startswith("mfu_"))
    print(json.dumps(result | {"mfu": best, "mfu_aim": MFU}))
    return int(asked.device == "cuda" and best < MFU)


if __name__ == "__main__":
    sys.exit(main())
