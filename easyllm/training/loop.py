"""The training loop, the same for every layout."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

import torch

from easyllm.data.dataset.rows import Rows
from easyllm.errors import UserError
from easyllm.models.adapted import adapted
from easyllm.models.config import family_of, fit_tokenizer, hf_config
from easyllm.models.layers import param_specs
from easyllm.models.weight_mapping import WeightMapping
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.parallelism.timing import PHASES
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.model import trainable
from easyllm.spec.run import RunSpec
from easyllm.training import evaluation
from easyllm.training.batches import NOTHING, Share
from easyllm.training.checkpointing import checkpoints, optimizer_state
from easyllm.training.checkpointing.resuming import (
    archive,
    settings,
    starting_point,
    starting_weights,
)
from easyllm.training.checkpointing.saving import Saver
from easyllm.training.metrics import (
    MetricsLog,
    flops_per_token,
    peak_memory,
    read,
    summary,
    told,
)
from easyllm.training.profiling import Profiler
from easyllm.training.sampling import samples_of, seed_step
from easyllm.training.stopping import Stop, Stopped


def train(run: RunSpec, rows: Rows, device: torch.device, stop: Stop) -> dict[str, Any]:
    """Train on this rank and its fellows until all steps are done and saved.

    Goes on from the run's newest whole checkpoint. Returns what the stage's record tells.
    Raises UserError, or Stopped at the end of a step in which any rank was asked to stop.
    """
    training = Training(run, rows, device)
    if not training.done:
        training.start()
        with training, training.records() as log, training.bar() as bar:
            while training.step < training.total:
                line = training.turn(log, stop)
                bar.set_postfix(told(line), refresh=False)
                bar.update()
        if training.total == 0:
            training.save_untrained()
    return training.report()


class Training:
    """A model in training: its place in the data, its engine, what it tells of itself."""

    engine: TrainEngine
    ahead: Share
    """What this rank trains on in the next step."""
    ahead_trained: int
    """The trained tokens of all replicas' in it, told with the sums of the step before."""

    def __init__(self, run: RunSpec, rows: Rows, device: torch.device):
        self.run, self.rows, self.device = run, rows, device
        self.paths = RunPaths(run)
        self.config = hf_config(run)
        fit_tokenizer(run, self.config)
        self.family = family_of(run, self.config.model_type)
        layers = self.family.layers(self.config, run.model.attention)
        self.layers, shapes = adapted(run, layers), param_specs(layers)
        self.parameters = sum(map(math.prod, trainable.shapes(shapes).values()))
        self.trained = sum(map(math.prod, trainable.trained(run, shapes).values()))
        self.total = total_steps(run, rows)
        self.begun = starting_point(run, rows, self.total)
        self.step, self.samples = self.begun.step, self.begun.samples
        self.eval_loss: float | None = None
        self.profiler = Profiler(run.training.profile, self.paths.profile, device)
        conversations = bool(rows.manifest["conversations"])
        self.saver = Saver(
            run, self.config, self.family.names() or WeightMapping(), conversations,
            rows.manifest["template_arguments"],
        )  # fmt: skip
        self.longest = 0.0
        """Seconds of the longest step of this start, evaluation included."""
        self.read_bytes = self.read_files = 0

    @property
    def done(self) -> bool:
        """Whether the newest checkpoint already is the last one."""
        return bool(self.begun.checkpoint) and not self.begun.anew and self.step == self.total

    def start(self) -> None:
        """Build the model and its optimizer on all ranks."""
        world.beat("building the model")
        begun, paths = self.begun, self.paths
        if world.is_main():
            checkpoints.clear_leftovers(paths.checkpoints)
            if begun.checkpoint is None:
                archive(paths)
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
            self.saver.finish()
            if world.is_main():
                archive(paths, but=checkpoints.location(paths.checkpoints, 0))
        self.heldout = self.rows.heldout() if self.run.training.evaluate.fraction else []
        if world.is_main() and self.heldout:
            evaluation.write(self.heldout, paths.heldout)
        self.ahead = self._read_ahead()
        self.ahead_trained = self.engine.sum_over_replicas(self.ahead.trained)

    def records(self) -> MetricsLog:
        """Where this rank's steps are recorded; only rank 0's are kept."""
        return MetricsLog(self.run, self.step, keep=world.is_main())

    def bar(self) -> Any:
        bar = progress("train", self.total, "step", visible=world.is_main())
        bar.n = bar.initial = self.step
        return bar

    def due(self, every: int | None) -> bool:
        """Whether something done every so many steps, and at the end, is to be done now."""
        return self.step == self.total or bool(every and self.step % every == 0)

    def turn(self, log: MetricsLog, stop: Stop) -> dict[str, Any]:
        """Train one step, record it, save where that is due; returns its line of metrics.

        Raises UserError for a loss that is not finite; Stopped, with all saved, where any rank
        was asked to stop or the next step would exceed ``training.max_runtime``.
        """
        begin = time.perf_counter()
        line, part = self.advance()
        self.longest = max(self.longest, time.perf_counter() - begin)
        spent = world.is_main() and self._spent(stop)
        time_to_save = world.is_main() and self._time_to_save()
        counted = self.ahead.trained if self.engine.counts_data else 0
        flags = map(float, (stop.asked, spent, time_to_save, self.saver.written))
        # one message for all that the ranks have to tell each other: each costs them a wait
        loss, trained, asked, over, due, written, *sums = world.all_reduce_sum(
            [part, counted, *flags, *self.times.values()], self.device
        )
        self.ahead_trained = int(trained)
        line |= self._outcome(loss, line["grad_norm"])
        line |= self._speed(*(total / world.size() for total in sums))
        if written == world.size():
            self.saver.finish()
        line |= self.saver.told()
        log.log(line)
        stopping = bool(asked) or bool(over and self.step < self.total)
        if stopping or due or self.due(self.run.training.checkpoint.steps):
            log.sync()
            self.save()
        if stopping or self.step == self.total:
            self.saver.finish()
        if stopping:
            over_time = f"training.max_runtime={self.run.training.max_runtime} s is spent"
            why = "stopped by a signal" if asked else over_time
            raise Stopped(f"{why}; what it had is saved, step {self.step} of {self.total}")
        return line

    def _spent(self, stop: Stop) -> bool:
        """Whether another step and a checkpoint would take longer than there is time."""
        most = self.run.training.max_runtime
        saving = self.saver.longest
        return most is not None and stop.seconds + self.longest + saving > most

    def _time_to_save(self) -> bool:
        """Whether ``training.checkpoint.every``, a time, has passed since the last save."""
        seconds = self.run.training.checkpoint.seconds
        return seconds is not None and time.monotonic() - self.saver.last >= seconds

    def advance(self) -> tuple[dict[str, Any], float]:
        """Train one step; returns its line of metrics, and this rank's part of its loss."""
        world.beat(f"step {self.step + 1}")
        profiled = self.profiler.before(self.step + 1)
        begin = time.perf_counter()
        layout, engine, optimizer = self.run.parallelism, self.engine, self.run.training.optimizer
        engine.clock.start()
        lr = optimizer.lr * self.run.training.schedule.factor(self.step, self.total)
        engine.set_lr(lr)
        trained = self.ahead_trained
        seed_step(self.run.seed, self.step, world.rank())
        part = engine.train_batch(self.ahead.scaled(trained, engine.data_size))
        self.step += 1
        self.samples += layout.global_batch_size
        with engine.clock.phase("data"):
            self.ahead = self._read_ahead()
        phases = engine.clock.stop()
        self.times = {"seconds": time.perf_counter() - begin, **phases}
        self.profiler.after(self.step)
        line = {
            "step": self.step,
            "loss": None,  # told when the ranks' parts are added up
            "tokens": layout.global_batch_size * self.rows.seq_len,
            "trained_tokens": trained,
            "grad_norm": engine.grad_norm,
            "lr": lr,
            "memory_gb": peak_memory(self.device) / 1e9,
        }
        line |= {"profiled": True} if profiled else {}
        if self.heldout and self.due(self.run.training.evaluate.every):
            line["eval_loss"] = self.evaluate()
        return line, part

    def _speed(self, seconds: float, *phases: float) -> dict[str, float]:
        """For the line of metrics: how fast a step was that took ``seconds`` in all and in its
        phases, on the mean over the ranks."""
        ranks, peak = self.run.hardware.ranks, self.run.hardware.peak_tflops
        speed = self.run.parallelism.global_batch_size * self.rows.seq_len / seconds
        found = {"tokens_per_second": speed, "tokens_per_second_per_device": speed / ranks}
        if peak:
            shape = self.family.shape(self.config.to_dict())
            flops = flops_per_token(shape, self.parameters, self.rows.seq_len, self.trained)
            found["mfu"] = speed * flops / (peak * 1e12 * ranks)
        found["seconds"] = seconds
        return found | {f"{name}_seconds": t for name, t in zip(PHASES, phases, strict=True)}

    def _read_ahead(self) -> Share:
        """What this rank trains on in the next step."""
        engine = self.engine
        if not engine.reads_data or self.step == self.total:
            return NOTHING
        wanted = samples_of(self.samples, self.run.parallelism, engine.data_rank, engine.data_size)
        rows = [[self.rows.sample(index) for index in micro] for micro in wanted]
        return Share.of(rows, self.config.vocab_size)

    def _outcome(self, loss: float, norm: float) -> dict[str, Any]:
        """For the line of metrics: what a step came to, which made no update where it was not
        finite. Raises UserError where that ends the run."""
        if math.isfinite(loss) and math.isfinite(norm):
            return {"loss": loss}
        if self.run.training.on_nonfinite == "skip" and not math.isfinite(norm):
            return {"loss": None, "grad_norm": None, "skipped": True}
        self.saver.finish()  # all ranks are here, and what was saved before is to stand
        raise UserError(
            f"step {self.step}: loss {loss}, norm of the gradient {norm}; what was saved "
            "before stands. Give a smaller training.optimizer.lr (now "
            f"{self.run.training.optimizer.lr:g}), a longer training.schedule.warmup, or "
            "training.on_nonfinite=skip to leave such steps out"
        )

    def evaluate(self) -> float:
        size = self.run.parallelism.micro_batch_size
        found = evaluation.evaluate(
            self.engine, self.heldout, size, self.config.vocab_size, self.step
        )
        self.eval_loss = found
        return found

    def save_untrained(self) -> None:
        """What a run of no steps leaves: the weights as they came, evaluated."""
        if self.heldout:
            self.evaluate()
        self.save()
        self.saver.finish()

    def save(self) -> None:
        world.beat(f"saving step {self.step}")
        facts = {
            "step": self.step,
            "samples": self.samples,
            "trained_with": settings(self.run, self.rows),
        }
        self.saver.begin(self.engine, facts)

    def __enter__(self) -> Training:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.profiler.stop()

    def report(self) -> dict[str, Any]:
        """What the record tells of all steps, those of earlier starts included."""
        lines = [line for line in read(self.paths.metrics) if line["step"] <= self.total]
        found = {
            "steps": self.total,
            **summary(lines),
            "parameters": self.parameters,
            "trained_parameters": self.trained,
            "checkpoint": str(checkpoints.location(self.paths.checkpoints, self.total)),
            "bytes_read": world.all_gather_object(self.read_bytes),
            "files_read": world.all_gather_object(self.read_files),
            "data_map": self.rows.cache,
        }
        return found if self.eval_loss is None else {**found, "eval_loss": self.eval_loss}


def total_steps(run: RunSpec, rows: Rows) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may reach into the next."""
    training = run.training
    if training.epochs is None:
        return training.steps or 0
    return math.ceil(training.epochs * rows.per_epoch / run.parallelism.global_batch_size)
