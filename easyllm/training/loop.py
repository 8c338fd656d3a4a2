"""The training loop, the same for every layout."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from easyllm.data.rows import Rows
from easyllm.errors import UserError
from easyllm.files import new_file
from easyllm.models.adapted import adapted
from easyllm.models.config import family_of, fit_tokenizer, hf_config
from easyllm.models.layers import outline
from easyllm.models.names import Names
from easyllm.parallelism import world
from easyllm.parallelism.engine import Batch, TrainEngine
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec import trainable
from easyllm.spec.run import RunSpec
from easyllm.training import checkpoints, optimizer_state
from easyllm.training.batches import dealt, micro_batches, scaled
from easyllm.training.metrics import MetricsLog, flops_per_token, peak_memory, read, summary
from easyllm.training.resuming import set_aside, settings, starting_point, starting_weights
from easyllm.training.sampling import samples_of, seed_step
from easyllm.training.saving import save
from easyllm.training.stopping import Stop, Stopped


def train(run: RunSpec, rows: Rows, device: torch.device, stop: Stop) -> dict[str, Any]:
    """Train on this rank and its fellows until all steps are done and saved.

    Goes on from the run's newest whole checkpoint. Returns what the stage's record tells.
    Raises UserError, or Stopped at the end of a step in which any rank was asked to stop.
    """
    training = Training(run, rows, device)
    if not training.done:
        training.start()
        with training.records() as log, training.bar() as bar:
            while training.step < training.total:
                line = training.advance()
                log.log(line)
                told = "skipped" if line["loss"] is None else f"{line['loss']:.3f}"
                bar.set_postfix(loss=told, refresh=False)
                bar.update()
                stopping = world.any_rank(stop.asked, device)
                if stopping or training.due(run.training.checkpoint.every):
                    log.sync()
                    training.save()
                if stopping:
                    raise Stopped(f"saved after step {training.step} of {training.total}")
        if training.total == 0:
            training.save_untrained()
    return training.report()


class Training:
    """A model in training: its place in the data, its engine, what it tells of itself."""

    engine: TrainEngine

    def __init__(self, run: RunSpec, rows: Rows, device: torch.device):
        self.run, self.rows, self.device = run, rows, device
        self.paths = RunPaths(run)
        self.config = hf_config(run)
        fit_tokenizer(run, self.config)
        self.family = family_of(run, self.config.model_type)
        layers = self.family.layers(self.config, run.model.attention)
        self.layers, shapes = adapted(run, layers), outline(layers)
        self.parameters = sum(map(math.prod, trainable.shapes(shapes).values()))
        self.trained = sum(map(math.prod, trainable.trained(run, shapes).values()))
        self.total = total_steps(run, rows)
        self.begun = starting_point(run, rows, self.total)
        self.step, self.samples = self.begun.step, self.begun.samples
        self.eval_loss: float | None = None
        self.save_seconds: float | None = None
        """How long training stood still for a checkpoint since the last line of metrics."""
        self.read_bytes = self.read_files = 0

    @property
    def done(self) -> bool:
        """Whether the newest checkpoint already is the last one."""
        return bool(self.begun.checkpoint) and not self.begun.anew and self.step == self.total

    def start(self) -> None:
        """Build the model and its optimizer on all ranks."""
        world.beat("building the model")
        begun, paths = self.begun, self.paths
        if world.first():
            checkpoints.clear_leftovers(paths.checkpoints)
            if begun.checkpoint is None:
                set_aside(paths)
        weights = starting_weights(self.run, self.config, self.family, begun.checkpoint)
        self.engine = self.run.parallelism.engine(
            self.run, layers=self.layers, weights=weights, device=self.device
        )
        self.read_bytes, self.read_files = weights.bytes_read, len(weights.files_read)
        if begun.checkpoint and self.step:
            optimizer_state.load(self.engine, begun.checkpoint.path / optimizer_state.FOLDER)
        if begun.anew:
            # before the old ones go, so that the run has its weights whenever it is killed
            self.save()
            if world.first():
                set_aside(paths, but=checkpoints.location(paths.checkpoints, 0))
        self.heldout = self.rows.heldout() if self.run.training.evaluate.fraction else []
        if world.first() and self.heldout:
            self._write_heldout(paths.heldout)

    def records(self) -> MetricsLog:
        """Where this rank's steps are recorded; only rank 0's are kept."""
        return MetricsLog(self.run, self.step, keep=world.first())

    def bar(self) -> Any:
        bar = progress("train", self.total, "step", visible=world.first())
        bar.n = bar.initial = self.step
        return bar

    def due(self, every: int | None) -> bool:
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step == self.total or bool(every and self.step % every == 0)

    def advance(self) -> dict[str, Any]:
        """Train one step; returns its line of metrics."""
        world.beat(f"step {self.step + 1}")
        begin = time.perf_counter()
        layout, engine, optimizer = self.run.parallelism, self.engine, self.run.training.optimizer
        lr = optimizer.lr * self.run.training.schedule.factor(self.step, self.total)
        engine.set_lr(lr)
        batches: list[Batch] = []
        trained = 0
        if engine.reads_data:
            wanted = samples_of(self.samples, layout, engine.data_rank, engine.data_size)
            rows = [[self.rows.sample(index) for index in micro] for micro in wanted]
            batches, trained = scaled(rows, engine, self.config.vocab_size)
        seed_step(self.run.seed, self.step, world.rank())
        loss, norm = engine.train_batch(batches), engine.grad_norm
        skipped = self._skipped(loss, norm)
        self.step += 1
        self.samples += layout.global_batch_size
        tokens = layout.global_batch_size * self.rows.seq_len
        seconds = time.perf_counter() - begin
        line = {
            "step": self.step,
            "loss": None if skipped else loss,
            "tokens": tokens,
            "trained_tokens": trained,
            "tokens_per_second": tokens / seconds,
            "grad_norm": None if skipped else norm,
            "lr": lr,
            "seconds": seconds,
            "memory_gb": peak_memory(self.device) / 1e9,
        }
        if skipped:
            line["skipped"] = True
        if self.save_seconds is not None:
            line["save_seconds"], self.save_seconds = self.save_seconds, None
        if self.run.hardware.peak_tflops:
            shape = self.family.shape(self.config.to_dict())
            per_token = flops_per_token(shape, self.parameters, self.rows.seq_len, self.trained)
            flops = tokens * per_token
            peak = self.run.hardware.peak_tflops * 1e12 * self.run.hardware.ranks
            line["mfu"] = flops / seconds / peak
        if self.heldout and self.due(self.run.training.evaluate.every):
            line["eval_loss"] = self.evaluate()
        return line

    def _skipped(self, loss: float, norm: float) -> bool:
        """Whether the step made no update. Raises UserError where that ends the run."""
        if math.isfinite(loss) and math.isfinite(norm):
            return False
        if self.run.training.on_nonfinite == "skip" and not math.isfinite(norm):
            return True
        raise UserError(
            f"step {self.step + 1}: loss {loss}, norm of the gradient {norm}; what was saved "
            "before stands. Give a smaller training.optimizer.lr (now "
            f"{self.run.training.optimizer.lr:g}), a longer training.schedule.warmup, or "
            "training.on_nonfinite=skip to leave such steps out"
        )

    def evaluate(self) -> float:
        """Mean cross entropy over the trained tokens of the held-out rows."""
        engine, size = self.engine, self.run.parallelism.micro_batch_size
        count = micro_batches(len(self.heldout), size, engine.data_size)
        batches: list[Batch] = []
        if engine.reads_data:
            rows = dealt(self.heldout, size, engine.data_rank, engine.data_size)
            batches, _ = scaled(rows, engine, self.config.vocab_size)
        at_once, loss = engine.accumulation, 0.0
        with progress("evaluate", count, "batch", visible=world.first()) as bar:
            for begin in range(0, count, at_once):
                world.beat(f"evaluation after step {self.step}")
                some = min(at_once, count - begin)
                loss += engine.evaluate(batches[begin : begin + some], some) * some / count
                bar.update(some)
        self.eval_loss = loss
        return loss

    def save_untrained(self) -> None:
        """What a run of no steps leaves: the weights as they came, evaluated."""
        if self.heldout:
            self.evaluate()
        self.save()

    def save(self) -> None:
        world.beat(f"saving step {self.step}")
        begin = time.perf_counter()
        facts = {
            "step": self.step,
            "samples": self.samples,
            "trained_with": settings(self.run, self.rows),
        }
        conversations = bool(self.rows.manifest["conversations"])
        save(self.engine, self.config, self.family.names() or Names(), facts, conversations)
        self.save_seconds = time.perf_counter() - begin

    def report(self) -> dict[str, Any]:
        """What the record tells of all steps, those of earlier starts included."""
        lines = [line for line in read(self.paths.metrics) if line["step"] <= self.total]
        found = {
            "steps": self.total,
            **summary(lines),
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "checkpoint": str(checkpoints.location(self.paths.checkpoints, self.total)),
            "bytes_read": world.from_all(self.read_bytes),
            "files_read": world.from_all(self.read_files),
            "data_map": self.rows.cache,
        }
        return found if self.eval_loss is None else {**found, "eval_loss": self.eval_loss}

    def _write_heldout(self, file: Path) -> None:
        """Write what evaluation reads, one document a line: without the rows' boundaries,
        which only this package knows, a plain loop over it finds the same loss."""
        with new_file(file) as aside, aside.open("w", encoding="utf-8") as lines:
            for row in self.heldout:
                begins = np.flatnonzero(row.positions == 0)[1:]
                for ids, labels in zip(
                    np.split(row.input_ids, begins), np.split(row.labels, begins), strict=True
                ):
                    trained = np.flatnonzero(labels != -100)
                    if len(trained):
                        end = int(trained[-1]) + 1
                        line = {"input_ids": ids[:end].tolist(), "labels": labels[:end].tolist()}
                        lines.write(json.dumps(line) + "\n")


def total_steps(run: RunSpec, rows: Rows) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may reach into the next."""
    training = run.training
    if training.epochs is None:
        return training.steps or 0
    return math.ceil(training.epochs * rows.per_epoch / run.parallelism.global_batch_size)
