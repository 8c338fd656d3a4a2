"""The training loop, the same for every layout."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import Any

import torch

from easyllm.data.dataset.rows import Rows
from easyllm.errors import UserError
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.parallelism.timing import PHASES
from easyllm.paths import RunPaths
from easyllm.progress import progress
from easyllm.spec.run import RunSpec
from easyllm.training.batches import NOTHING, Share
from easyllm.training.checkpointing import checkpoints
from easyllm.training.checkpointing.resuming import archive, settings
from easyllm.training.checks.checks import Checks
from easyllm.training.evaluation import heldout_loss
from easyllm.training.evaluation.tasks import TaskEvaluation
from easyllm.training.metrics import metrics_log, step_metrics
from easyllm.training.metrics.metrics_log import MetricsLog
from easyllm.training.profiling import Profiler
from easyllm.training.sampling import samples_of, seed_step
from easyllm.training.save_policy import SavePolicy, due
from easyllm.training.setup import Setup
from easyllm.training.stopping import Stop, Stopped


def train(run: RunSpec, rows: Rows, device: torch.device, stop: Stop) -> dict[str, Any]:
    """Train on this rank and its peers until all steps are done and saved.

    Resumes from the run's newest complete checkpoint. Returns what the stage's record holds.
    Raises UserError, or Stopped at the end of a step in which any rank was asked to stop.
    """
    training = Training(Setup.of(run, rows), device)
    if not training.setup.done:
        training.start()
        with training, training.log() as log, training.bar() as bar:
            while training.step < training.total:
                line = training.train_step(log, stop)
                bar.set_postfix(step_metrics.progress_fields(line), refresh=False)
                bar.update()
        if training.total == 0:
            training.save_untrained()
    return training.report()


class Training:
    """A model in training: its engine, its position in the data, and the work after each step."""

    engine: TrainEngine
    ahead: Share
    """What this rank trains on in the next step."""
    ahead_trained: int
    """The trained tokens of all replicas in it, summed with the numbers of the step before."""

    def __init__(self, setup: Setup, device: torch.device):
        self.setup, self.run, self.rows, self.device = setup, setup.run, setup.rows, device
        self.paths = RunPaths(self.run)
        self.total = setup.total_steps
        self.step, self.samples = setup.resume.step, setup.resume.samples
        self.eval_loss: float | None = None
        self.profiler = Profiler(self.run.training.profile, self.paths.profile, device)
        self.saver = setup.saver()
        self.policy = SavePolicy(self.run.training, self.saver)
        self.read_bytes = self.read_files = 0
        self.checks = Checks(setup)
        self.tasks = TaskEvaluation(self.run, setup.config.vocab_size)

    def start(self) -> None:
        """Build the model and its optimizer on all ranks."""
        world.beat("building the model")
        resume, paths = self.setup.resume, self.paths
        if world.is_main():
            checkpoints.clear_leftovers(paths.checkpoints)
            if resume.checkpoint is None:
                archive(paths)
        self.engine, weights = self.setup.engine(self.device)
        self.read_bytes, self.read_files = weights.bytes_read, len(weights.files_read)
        if resume.weights_only:
            # before the old ones are archived, so that the run always has weights, even if it is
            # killed
            self.save()
            self.saver.finish()
            if world.is_main():
                archive(paths, but=checkpoints.location(paths.checkpoints, 0))
        self.heldout = self.rows.heldout() if self.run.training.evaluate.fraction else []
        if world.is_main() and self.heldout:
            heldout_loss.write(self.heldout, paths.heldout)
        self.tasks.check()
        if self.step == 0:
            self.checks.before(self.engine, self.device)
        self.ahead = self._read_ahead()
        self.ahead_trained = self.engine.sum_over_replicas(self.ahead.trained)

    def log(self) -> MetricsLog:
        """The log of this rank's steps; only rank 0 keeps one."""
        return MetricsLog(self.run, self.step, keep=world.is_main())

    def bar(self) -> Any:
        bar = progress("train", self.total, "step", visible=world.is_main())
        bar.n = bar.initial = self.step
        return bar

    def train_step(self, log: MetricsLog, stop: Stop) -> dict[str, Any]:
        """Train one step, record it, and save if that is due; returns its line of metrics.

        Raises UserError for a loss that is not finite; Stopped, with all saved, where any rank
        was asked to stop or the next step would exceed ``training.max_runtime``.
        """
        begin = time.perf_counter()
        line, part = self.advance()
        self.policy.stepped(time.perf_counter() - begin)
        main = world.is_main()
        out_of_time = main and self.policy.out_of_time(stop)
        save_due = main and self.policy.time_is_due()
        counted = self.ahead.trained if self.engine.counts_data else 0
        flags = map(float, (stop.asked, out_of_time, save_due, self.saver.written))
        # one collective for all that the ranks exchange, because each one makes them wait
        loss, trained, asked, over, save, written, *sums = world.all_reduce_sum(
            [part, counted, *flags, *self.times.values(), *self.engine.router_metrics()],
            self.device,
        )
        sums, routed = sums[: len(self.times)], sums[len(self.times) :]
        self.ahead_trained = int(trained)
        line |= self._outcome(loss, line["grad_norm"])
        seconds, *phases = (total / world.size() for total in sums)
        line |= step_metrics.speed(self.setup, seconds) | {"seconds": seconds}
        line |= {f"{name}_seconds": t for name, t in zip(PHASES, phases, strict=True)}
        line |= step_metrics.routers(routed, self.engine)
        if written == world.size():
            self.saver.finish()
        line |= self.saver.metrics()
        self.checks.after(loss, line["grad_norm"])
        log.log(line)
        stopping = bool(asked) or bool(over and self.step < self.total)
        if stopping or save or self.policy.step_is_due(self.step, self.total):
            log.sync()
            self.save()
        if stopping or self.step == self.total:
            self.saver.finish()
        if stopping:
            over_time = f"training.max_runtime={self.run.training.max_runtime} s is used up"
            why = "stopped by a signal" if asked else over_time
            raise Stopped(f"{why}; saved at step {self.step} of {self.total}")
        return line

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
            "loss": None,  # known when the ranks' parts are summed
            "tokens": layout.global_batch_size * self.rows.seq_len,
            "trained_tokens": trained,
            "grad_norm": engine.grad_norm,
            "lr": lr,
            "memory_gb": step_metrics.peak_memory(self.device) / 1e9,
        }
        line |= {"profiled": True} if profiled else {}
        if due(self.step, self.total, self.run.training.evaluate.every):
            if self.heldout:
                line["eval_loss"] = self.evaluate()
            line |= self.tasks.evaluate(self.engine, self.step)
        return line, part

    def _read_ahead(self) -> Share:
        """What this rank trains on in the next step."""
        engine = self.engine
        if not engine.reads_data or self.step == self.total:
            return NOTHING
        wanted = samples_of(self.samples, self.run.parallelism, engine.data_rank, engine.data_size)
        rows = [[self.rows.sample(index) for index in micro] for micro in wanted]
        return Share.of(rows, self.setup.config.vocab_size)

    def _outcome(self, loss: float, norm: float) -> dict[str, Any]:
        """For the line of metrics: the result of a step. A step whose result is not finite made no
        update. Raises UserError where that ends the run."""
        if math.isfinite(loss) and math.isfinite(norm):
            return {"loss": loss}
        if self.run.training.on_nonfinite == "skip" and not math.isfinite(norm):
            return {"loss": None, "grad_norm": None, "skipped": True}
        self.saver.finish()  # all ranks are here, and the save before must be completed
        raise UserError(
            f"step {self.step}: loss {loss}, norm of the gradient {norm}; checkpoints saved "
            "before are kept. Give a smaller training.optimizer.lr (now "
            f"{self.run.training.optimizer.lr:g}), a longer training.schedule.warmup, or "
            "training.on_nonfinite=skip to skip such steps"
        )

    def evaluate(self) -> float:
        size = self.run.parallelism.micro_batch_size
        found = heldout_loss.evaluate(
            self.engine, self.heldout, size, self.setup.config.vocab_size, self.step
        )
        self.eval_loss = found
        return found

    def save_untrained(self) -> None:
        """Save and evaluate the first weights, in a run without steps."""
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
        """The stage's record of all steps, including those of earlier starts."""
        lines = [
            line for line in metrics_log.read(self.paths.metrics) if line["step"] <= self.total
        ]
        found = {
            "steps": self.total,
            **metrics_log.summary(lines),
            "parameters": self.setup.parameters,
            "trained_parameters": self.setup.trained_parameters,
            "checkpoint": str(checkpoints.location(self.paths.checkpoints, self.total)),
            "bytes_read": world.all_gather_object(self.read_bytes),
            "files_read": world.all_gather_object(self.read_files),
            "data_map": self.rows.cache,
            **({"checks": self.checks.found} if self.checks.found else {}),
        }
        return found if self.eval_loss is None else {**found, "eval_loss": self.eval_loss}
