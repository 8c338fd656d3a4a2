"""Tasks of lm-eval during training, on the ranks and the weights that train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from easyllm.data.dataset.rows import Row
from easyllm.data.store.shards import UNTRAINED
from easyllm.data.tokenizers.encode import load_tokenizer
from easyllm.errors import UserError
from easyllm.models.layers import Unprojected
from easyllm.parallelism import world
from easyllm.parallelism.engine import TrainEngine
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec
from easyllm.tasks.harness import Harness
from easyllm.training.batches import Share, dealt, micro_batches

KEY = "training.evaluate.tasks"
ELSEWHERE = "give the task to the stage evaluate"
WITHOUT = {
    "generate_until": f"its answers are generated, which training does not do; {ELSEWHERE}",
    "loglikelihood_rolling": f"its texts are longer than a row; {ELSEWHERE}",
}
"""Why training does not run a kind of task."""


class Scored(NamedTuple):
    """The log-probability of a continuation, and whether each of its tokens is the likeliest."""

    logprob: float
    greedy: bool


Request = tuple[list[int], list[int]]
"""The token ids of a context and of its continuation."""


class TaskEvaluation:
    """Runs the tasks of a run. Rank 0 runs lm-eval, and all ranks compute what it asks for."""

    def __init__(self, run: RunSpec, vocab_size: int):
        self.run, self.vocab_size = run, vocab_size
        self.specs = run.training.evaluate.tasks
        self.engine: TrainEngine | None = None

    def evaluate(self, engine: TrainEngine, step: int) -> dict[str, float]:
        """The metrics of all tasks after ``step`` steps, for the log; empty without tasks. Every
        rank must call it. Raises UserError on all of them."""
        if not self.specs:
            return {}
        self.engine = engine
        world.beat(f"tasks after step {step}")
        if not world.is_main():
            while (asked := world.broadcast_object(None))[0] == "score":
                self._scored(asked[1])
            return self._ended(*asked)
        found: dict[str, float] = {}
        error = ""
        try:
            found = self._run()
        except UserError as problem:
            error = str(problem)
        return self._ended(*world.broadcast_object(("end", found, error)))

    def check(self) -> None:
        """Raises UserError on all ranks for a task that does not exist, or that training cannot
        run. Every rank must call it before the first step."""
        if not self.specs:
            return
        if error := world.broadcast_object(self._problem() if world.is_main() else ""):
            raise UserError(error)

    def score(self, requests: Sequence[Request]) -> list[Scored]:
        """Called by lm-eval, on rank 0."""
        world.broadcast_object(("score", list(requests)))
        return self._scored(requests)

    def _problem(self) -> str:
        try:
            tasks = self._harness.tasks
        except UserError as error:
            return str(error)
        kinds = {name: task.get("output_type") for name, task in tasks.items()}
        wrong = (
            f"{KEY}.{name}: {WITHOUT[kind]}" for name, kind in kinds.items() if kind in WITHOUT
        )
        return next(wrong, "")

    @staticmethod
    def _ended(_: str, found: dict[str, float], error: str) -> dict[str, float]:
        if error:
            raise UserError(error)
        return found

    def _run(self) -> dict[str, float]:
        found = {}
        for task, result in self._harness.results(self._model, self.run.seed).items():
            for metric, values in result["metrics"].items():
                found[f"tasks/{task}/{metric}"] = values["value"]
                if values["stderr"] is not None:
                    found[f"tasks/{task}/{metric}_stderr"] = values["stderr"]
        return found

    @cached_property
    def _harness(self) -> Harness:
        return Harness(self.specs, KEY)

    @cached_property
    def _model(self) -> Any:
        from easyllm.training.evaluation.task_model import TaskModel

        tokenizer = load_tokenizer(RunPaths(self.run).store.tokenizer)
        return TaskModel(self.score, WITHOUT, tokenizer, self.run.data.seq_len)

    def _scored(self, requests: Sequence[Request]) -> list[Scored]:
        """Every rank must call it with the same requests."""
        engine = self.engine
        assert engine is not None
        rows, places = self._rows(requests)
        size = self.run.parallelism.micro_batch_size
        count = micro_batches(len(rows), size, engine.data_size)
        values: list[tuple[torch.Tensor, torch.Tensor]] = []

        def observe(logits: torch.Tensor | Unprojected, labels: torch.Tensor) -> None:
            values.append(_of_labels(logits, labels))

        batches = []
        if engine.reads_data:
            mine = dealt(rows, size, engine.data_rank, engine.data_size)
            batches = Share.of(mine, self.vocab_size).scaled(1, engine.data_size)
        for number in range(count):
            world.beat("tasks")
            engine.observed(batches[number : number + 1], 1, observe)
        own = None
        if values:
            own = engine.data_rank, [torch.cat(part).tolist() for part in zip(*values, strict=True)]
        by_replica = dict(held for held in world.all_gather_object(own) if held is not None)
        return _by_request(by_replica, places, len(rows), engine.data_size)

    def _rows(self, requests: Sequence[Request]) -> tuple[list[Row], list[list[int]]]:
        """Rows with requests as documents, and the lengths of the continuations in each row, in
        the order of the requests."""
        length, alone = self.run.data.seq_len, self.run.data.packing == "none"
        rows: list[Row] = []
        places: list[list[int]] = []
        held: list[Request] = []

        def end() -> None:
            if held:
                rows.append(_row(held, length))
                places.append([len(continuation) for _, continuation in held])
                held.clear()

        for request in requests:
            used = sum(map(_length, (*held, request)))
            if alone or used > length:
                end()
            held.append(request)
        end()
        return rows, places


def _length(request: Request) -> int:
    return sum(map(len, request))


def _row(requests: Sequence[Request], length: int) -> Row:
    ids, labels = np.zeros(length, np.int64), np.full(length, UNTRAINED, np.int64)
    positions = np.arange(length)
    at = 0
    for context, continuation in requests:
        whole = [*context, *continuation]
        ids[at : at + len(whole)] = whole
        labels[at + len(context) : at + len(whole)] = continuation
        positions[at : at + len(whole)] = np.arange(len(whole))
        at += len(whole)
    positions[at:] = np.arange(length - at)
    return Row(ids, labels, positions)


def _of_labels(
    logits: torch.Tensor | Unprojected, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probabilities of the labels, row by row, and whether each is the likeliest token."""
    wanted = labels[:, 1:] != UNTRAINED
    hidden = logits if isinstance(logits, torch.Tensor) else logits[0]
    chosen = hidden[:, :-1][wanted]
    if not isinstance(logits, torch.Tensor):
        chosen = chosen @ logits[1].T
    values = chosen.float()
    own = labels[:, 1:][wanted]
    logprobs = values.log_softmax(dim=-1).gather(1, own.unsqueeze(1)).squeeze(1)
    return logprobs.cpu(), (values.argmax(dim=-1) == own).cpu()


def _by_request(
    by_replica: dict[int, list[list[Any]]], places: list[list[int]], rows: int, replicas: int
) -> list[Scored]:
    """Rows were dealt to the replicas in turn, and each gave its values in order."""
    taken = dict.fromkeys(range(replicas), 0)
    found = []
    for row in range(rows):
        replica = row % replicas
        logprobs, greedy = by_replica[replica]
        for length in places[row]:
            begin = taken[replica]
            taken[replica] = end = begin + length
            found.append(Scored(sum(logprobs[begin:end]), all(greedy[begin:end])))
    return found
