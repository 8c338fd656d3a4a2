"""A training step against the bare DeepSpeed engine, and against transformers' Trainer.

The demo's tiny Llama on two ranks over gloo, in two pipeline stages and as two replicas under
ZeRO 1; CPython's language reference as one document, so that every row is one and attention has
the same to do for all. `easyllm` is the loop that `train` runs, rows read from the map, metrics
written, signals looked for; `bare` is DeepSpeed's own engine around transformers' own layers,
with rows that lie ready in memory and nothing else to do but tell the loss; `trainer` is
transformers' Trainer with a DeepSpeed configuration, ZeRO 1, its loss logged each step.
All are in the same processes at the same time and take their steps in turn. Each step begins and
ends at a barrier. A ratio is the median of the pairs' ratios.

The last line is one flat JSON object: `over_bare` is the worse of the two layouts,
`over_trainer` ZeRO's. Exits 1 where a limit is not met.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

OVER_BARE, OVER_TRAINER = 1.05, 1.0
"""Limits, at most."""
WARM_UP = 3
"""Steps of each that are not counted."""
LAYOUTS = {
    "pipeline": ["parallelism=pipeline", "parallelism.pipeline_stages=2"],
    "zero": ["parallelism=zero", "~parallelism.pipeline_stages"],
}


def prepare(root: Path, layout: str, steps: int) -> Path:
    """Tokenize once, and write the spec of a run of ``steps``; returns its file."""
    text = root / "reference.jsonl"
    if not text.exists():
        from pydoc_data.topics import topics

        whole = "\n\n".join(topics.values())
        text.write_text(json.dumps({"text": whole}) + "\n", "utf-8")
    run = root / layout
    command = [
        *(sys.executable, "-m", "easyllm", "+recipe=demo", "data=jsonl", f"run_dir={run}"),
        *("stages=[tokenize,train]", f"data.sources.jsonl.path={text}"),
        *(f"data.dir={root / 'store'}", *LAYOUTS[layout], "training.steps=0"),
        *("training.evaluate.fraction=0", "training.evaluate.every=null"),
        "training.optimizer.fused=true",  # as the Trainer's is by default
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"status {done.returncode}:\n{done.stdout.decode()[-4000:]}")
    from dataclasses import replace

    from easyllm import runfile

    spec = runfile.load(run / "run.yaml")
    training = replace(spec.training, steps=steps)
    file = root / f"{layout}.yaml"
    runfile.save(replace(spec, training=training, run_dir=str(root / f"{layout}-timed")), file)
    return file


class Sides:
    """What is compared, on this rank: ``step[name]()`` takes one step and tells its loss."""

    def __init__(self, file: Path):
        from easyllm.parallelism import world

        device = world.start("cpu")
        import torch

        from easyllm import runfile
        from easyllm.data.dataset.rows import open_rows
        from easyllm.training.loop import Training
        from easyllm.training.setup import Setup
        from easyllm.training.stopping import Stop

        self.run, self.device = runfile.load(file), device
        self.rows = open_rows(self.run)
        self.training = training = Training(Setup.of(self.run, self.rows), device)
        training.start()
        log, stop = training.log(), Stop()
        self.engine = training.engine
        self.accumulation = self.engine.accumulation
        picked = [self.rows.sample(index) for index in range(self.rows.per_epoch)]
        self.ids = torch.stack([torch.from_numpy(row.input_ids) for row in picked])
        assert all((row.positions[1:] > 0).all() for row in picked), "a row holds documents"
        self.place = 0
        self.step: dict[str, Callable[[], float]] = {
            "easyllm": lambda: training.train_step(log, stop)["loss"],
            "bare": self.bare_pipeline() if training.engine.layout.stages > 1 else self.bare_zero(),
        }

    def batches(self) -> list[Any]:
        """The next step's token ids of this replica, ``(rows, tokens)`` each."""
        size, count = self.run.parallelism.micro_batch_size, self.engine.data_size
        found = []
        for _ in range(self.accumulation):
            begin = (self.place + self.engine.data_rank * size) % (len(self.ids) - count * size)
            found.append(self.ids[begin : begin + size])
            self.place += count * size
        return found

    def model(self) -> Any:
        import torch
        from transformers import LlamaForCausalLM

        torch.manual_seed(1)
        return LlamaForCausalLM(self.training.setup.config)

    def initialize(self, model: Any) -> Any:
        import deepspeed

        from easyllm.parallelism.engine import parameter_groups

        optimizer = self.run.training.optimizer.build(parameter_groups(model))
        config = {**self.engine.config(), "gradient_clipping": 1.0}
        return deepspeed.initialize(
            model=model, optimizer=optimizer, config=config, dist_init_required=False
        )[0]

    def bare_zero(self) -> Callable[[], float]:
        runtime = self.initialize(self.model())

        def step() -> float:
            total = 0.0
            for ids in self.batches():
                loss = runtime(input_ids=ids, labels=ids, use_cache=False).loss
                runtime.backward(loss)
                runtime.step()
                total += loss.detach()
            return float(total) / self.accumulation

        return step

    def bare_pipeline(self) -> Callable[[], float]:
        import torch
        from deepspeed.pipe import LayerSpec, PipelineModule
        from torch import nn
        from transformers.models.llama.modeling_llama import (
            LlamaDecoderLayer,
            LlamaRMSNorm,
            LlamaRotaryEmbedding,
        )

        config = self.training.setup.config
        config._attn_implementation = "sdpa"

        class Decoder(LlamaDecoderLayer):
            def __init__(self, index: int):
                super().__init__(config, index)
                self.rotary = LlamaRotaryEmbedding(config)

            def forward(self, hidden: torch.Tensor) -> torch.Tensor:
                positions = torch.arange(hidden.shape[1])[None]
                return super().forward(hidden, position_embeddings=self.rotary(hidden, positions))

        def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )

        vocabulary, width = config.vocab_size, config.hidden_size
        layers = [
            LayerSpec(nn.Embedding, vocabulary, width),
            *(LayerSpec(Decoder, index) for index in range(config.num_hidden_layers)),
            LayerSpec(LlamaRMSNorm, width, eps=config.rms_norm_eps),
            LayerSpec(nn.Linear, width, vocabulary, bias=False),
        ]
        stages = self.engine.layout.stages
        model = PipelineModule(
            layers, num_stages=stages, loss_fn=loss_of, partition_method="type:Decoder"
        )
        ours = sum(p.numel() for p in self.engine.pipeline.parameters())
        assert sum(p.numel() for p in model.parameters()) == ours, "other stages than easyllm's"
        runtime = self.initialize(model)
        return lambda: float(runtime.train_batch(iter([(ids, ids) for ids in self.batches()])))

    def trainer(self, folder: Path, steps: int, between: Callable[[], None]) -> Any:
        """A Trainer of ``steps`` steps that calls ``between`` after each."""
        from accelerate import PartialState
        from accelerate.utils import DistributedType
        from deepspeed.utils import groups
        from transformers import Trainer, TrainerCallback, TrainingArguments

        groups.mpu = None  # DeepSpeed remembers the grid of the last pipeline
        # accelerate knows DeepSpeed on accelerators only: of CPUs it would make plain DDP
        PartialState(cpu=True, backend="gloo").distributed_type = DistributedType.DEEPSPEED
        layout = self.run.parallelism
        config = {**self.zero_config(), "gradient_clipping": 1.0}
        arguments = TrainingArguments(
            output_dir=str(folder), max_steps=steps,
            per_device_train_batch_size=layout.micro_batch_size,
            gradient_accumulation_steps=config["gradient_accumulation_steps"],
            learning_rate=self.run.training.optimizer.lr, weight_decay=0.1, max_grad_norm=1.0,
            logging_steps=1, report_to=[], disable_tqdm=True, save_strategy="no",
            deepspeed=config, accelerator_config={"use_configured_state": True}, use_cpu=True,
        )  # fmt: skip

        class Between(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                between()

        rows = [{"input_ids": ids, "labels": ids} for ids in self.ids]
        return Trainer(
            model=self.model(), args=arguments, train_dataset=rows, callbacks=[Between()]
        )

    def zero_config(self) -> dict[str, Any]:
        """DeepSpeed's configuration of two replicas under ZeRO 1."""
        layout, ranks = self.run.parallelism, self.run.hardware.ranks
        config = self.engine.config()
        config["gradient_accumulation_steps"] = layout.global_batch_size // (
            layout.micro_batch_size * ranks
        )
        return {key: value for key, value in config.items() if value is not None}


def measure(file: Path, pairs: int, out: Path) -> None:
    """Time the sides on this rank; rank 0 writes the seconds of each to ``out``."""
    import torch.distributed as dist

    sides = Sides(file)
    seconds: dict[str, list[float]] = {"easyllm": [], "bare": [], "trainer": []}
    losses: dict[str, float] = {}
    begin = time.perf_counter()

    def timed(name: str) -> None:
        dist.barrier()
        begin = time.perf_counter()
        losses[name] = sides.step[name]()
        dist.barrier()
        seconds[name].append(time.perf_counter() - begin)

    def between() -> None:
        """The Trainer has taken a step, which began when this function last returned."""
        nonlocal begin
        dist.barrier()
        seconds["trainer"].append(time.perf_counter() - begin)
        names = ["easyllm", "bare"]
        for name in names if len(seconds["trainer"]) % 2 else names[::-1]:
            timed(name)
        dist.barrier()
        begin = time.perf_counter()

    trainer = sides.trainer(out.parent / "trainer", pairs + WARM_UP, between)
    begin = time.perf_counter()
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DeepSpeedEngine"
    losses["trainer"] = trainer.state.log_history[-2]["loss"]
    if dist.get_rank() == 0:
        counted = {name: found[WARM_UP:] for name, found in seconds.items()}
        out.write_text(json.dumps({"seconds": counted, "losses": losses}))


def ratios(found: dict[str, list[float]], peer: str) -> Iterator[float]:
    return (ours / theirs for ours, theirs in zip(found["easyllm"], found[peer], strict=True))


def spread(values: list[float]) -> str:
    quarters = statistics.quantiles(values, n=4)
    return f"{quarters[0]:.3f}-{quarters[2]:.3f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--spec", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.spec:
        measure(asked.spec, asked.pairs, asked.out)
        sys.stdout.flush()
        os._exit(0)  # the process group may hang an ordinary exit
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        from easyllm.launchers.local import Local

        root = Path(place)
        for layout in asked.layouts:
            # one more than is timed: at its end a run saves
            spec = prepare(root, layout, asked.pairs + WARM_UP + 1)
            out = root / f"{layout}.json"
            command = [sys.executable, __file__, "--spec", str(spec), "--out", str(out)]
            environment = {
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parents[1]),
            }
            command += ["--pairs", str(asked.pairs)]
            if status := Local().launch(command, 2, root / f"{layout}-logs", environment):
                log = (root / f"{layout}-logs" / "rank-1.log").read_text("utf-8", "replace")
                print(log[-4000:])
                return status
            told = json.loads(out.read_text())
            for side, times in told["seconds"].items():
                print(
                    f"{layout:9} {side:8} {1000 * statistics.median(times):8.1f} ms a step "
                    f"({spread([1000 * t for t in times])})   loss {told['losses'][side]:.3f}"
                )
            for peer in ("bare", "trainer"):
                found = list(ratios(told["seconds"], peer))
                result[f"{layout}_over_{peer}"] = round(statistics.median(found), 3)
                result[f"{layout}_over_{peer}_spread"] = spread(found)
    result["over_bare"] = max(result[f"{layout}_over_bare"] for layout in asked.layouts)
    result["over_trainer"] = result.get("zero_over_trainer")
    result |= {"pairs": asked.pairs, "over_bare_limit": OVER_BARE}
    result["over_trainer_limit"] = OVER_TRAINER
    print(json.dumps(result))
    met = result["over_bare"] <= OVER_BARE and (result["over_trainer"] or 0) <= OVER_TRAINER
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
