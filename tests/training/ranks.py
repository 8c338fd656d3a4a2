"""Trains many small cases in one process group: ``python -m tests.training.ranks CASES.json``.

Starting ranks costs seconds, so tests share a launch. Each rank writes what it saw to
``<case's folder>/rank-<n>.json``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from easyllm.parallelism import world

DEVICE = world.start("cpu")

import torch  # noqa: E402
from deepspeed.comm import comm  # noqa: E402  after the accelerator is settled
from deepspeed.utils import groups  # noqa: E402
from transformers import AttentionInterface  # noqa: E402

from easyllm.data.dataset.rows import open_rows  # noqa: E402
from easyllm.errors import UserError  # noqa: E402
from easyllm.models.attention.documents import BY_DOCUMENT, Documents, attend_by_document  # noqa: E402
from easyllm.models.layers import causal_loss  # noqa: E402
from easyllm.parallelism import engine as engines  # noqa: E402
from easyllm.parallelism.engine import TrainEngine  # noqa: E402
from easyllm.paths import RunPaths  # noqa: E402
from easyllm.training.checkpointing import checkpoints  # noqa: E402
from easyllm.training.loop import train  # noqa: E402
from easyllm.training.stopping import Stopped, on_signals  # noqa: E402
from tests.support import run_spec  # noqa: E402


class Watched:
    """Rows that remember which samples were read, send a signal in the step that trains on one
    of them, and take ``delay`` seconds each."""

    def __init__(self, rows: Any, stop_at: int | None, number: str, delay: float):
        self.rows, self.stop_at, self.number = rows, stop_at, signal.Signals[number]
        self.delay = delay
        self.samples: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def sample(self, index: int) -> Any:
        self.samples.append(index)
        time.sleep(self.delay)
        if index == self.stop_at:
            os.kill(os.getpid(), self.number)
        return self.rows.sample(index)


def damage(checkpoints: Path, how: str, pattern: str) -> None:
    """Cut a byte off the files of a pattern, turn a bit in their middle, or remove them."""
    files = list(checkpoints.glob(pattern))
    assert files, f"nothing to damage at {checkpoints / pattern}"
    for file in files:
        content = bytearray(file.read_bytes())
        if how == "cut":
            file.write_bytes(content[:-1])
        elif how == "flip":
            content[len(content) // 2] ^= 1
            file.write_bytes(content)
        else:
            assert how == "remove"
            file.unlink()


@contextlib.contextmanager
def sabotaged(how: str | None) -> Iterator[None]:
    """Have attention reach over the beginnings of documents, or the loss be a hundredth too
    large."""
    if how == "leak":

        def leaking(*tensors: Any, documents: Documents, **named: Any) -> Any:
            rows, tokens = documents.positions.shape
            whole = Documents.of(torch.arange(tokens).expand(rows, tokens))
            return attend_by_document(*tensors, documents=whole, **named)

        AttentionInterface.register(BY_DOCUMENT, leaking)
    loss_of = TrainEngine.loss_of
    if how == "loss":
        TrainEngine.loss_of = lambda *given: 1.01 * loss_of(*given)  # type: ignore[method-assign]
    try:
        yield
    finally:
        AttentionInterface.register(BY_DOCUMENT, attend_by_document)
        TrainEngine.loss_of = loss_of  # type: ignore[method-assign]


def die_saving(rank: int, step: int) -> None:
    """Have ``rank`` killed when all files of the checkpoint of ``step`` are written and none is
    listed yet."""
    facts_of = checkpoints.facts_of

    def dying(folder: Path, names: Iterable[str]) -> Any:
        if world.rank() == rank and f"step-{step:08}" in folder.name:
            os.kill(os.getpid(), signal.SIGKILL)
        return facts_of(folder, names)

    checkpoints.facts_of = dying


@contextlib.contextmanager
def watched_optimizer(seen: dict[str, Any]) -> Iterator[None]:
    """Note how the engine was built, and at each update how many numbers the optimizer steps
    and which parameters have a gradient that it is not to step; and whether the loss is given
    logits."""
    initialize = TrainEngine.initialize

    def watching(engine: Any, model: Any) -> Any:
        runtime = initialize(engine, model)
        step, groups = engine.optimizer.step, engine.optimizer.param_groups
        kept = {"optimizer": runtime.zero_offload_optimizer(),
                "parameters": runtime.zero_offload_param()}  # fmt: skip
        seen["built"] = {
            "offloaded": [part for part, place in kept.items() if place and place.device == "cpu"],
            "recomputed": [name for name, layer in engine.modules.items()
                           if getattr(layer, "gradient_checkpointing", False)],
            "compiled": [name for name, layer in engine.modules.items()
                         if layer._compiled_call_impl is not None],
            "fused": engine.optimizer.defaults.get("fused"),
        }  # fmt: skip

        def stepping(*arguments: Any, **named: Any) -> Any:
            if "rounded" not in seen:
                seen["rounded"] = rounded([p.grad for group in groups for p in group["params"]])
            frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
            graded = [n for n, p in model.named_parameters() if p.grad is not None]
            seen["stepped"] = sum(p.numel() for group in groups for p in group["params"])
            seen["graded"] = sorted(set(frozen) & set(graded))
            seen["frozen"] = len(frozen)
            return step(*arguments, **named)

        engine.optimizer.step = stepping
        return runtime

    def losing(logits: Any, *rest: Any) -> Any:
        seen["logits"] = isinstance(logits, torch.Tensor)
        return causal_loss(logits, *rest)

    def sharing() -> None:
        seen["shared_cores"] = True

    share_cores, seen["shared_cores"] = engines.share_cores, False  # type: ignore[attr-defined]
    TrainEngine.initialize = watching  # type: ignore[method-assign]
    engines.share_cores = sharing  # type: ignore[attr-defined]
    engines.causal_loss = losing  # type: ignore[attr-defined]
    try:
        yield
    finally:
        TrainEngine.initialize = initialize  # type: ignore[method-assign]
        engines.causal_loss = causal_loss  # type: ignore[attr-defined]
        engines.share_cores = share_cores  # type: ignore[attr-defined]


def rounded(gradients: list[Any]) -> float:
    """The share of their numbers other than 0 that bfloat16 holds without rounding."""
    numbers = torch.cat([g.flatten().float() for g in gradients if g is not None])
    numbers = numbers[numbers != 0]
    return float((numbers == numbers.bfloat16().float()).float().mean())


@contextlib.contextmanager
def watched_reductions(seen: dict[str, Any]) -> Iterator[None]:
    """Note the types in which DeepSpeed has more than single numbers added up."""
    backend, found = type(comm.cdb), set()
    names = ("all_reduce", "reduce", "reduce_scatter_tensor", "reduce_scatter")
    kept = {name: getattr(backend, name) for name in names}

    def watching(method: Any) -> Any:
        def call(*given: Any, **named: Any) -> Any:
            for tensor in filter(torch.is_tensor, (*given, *named.values())):
                if tensor.is_floating_point() and tensor.numel() > 100:
                    found.add(str(tensor.dtype).removeprefix("torch."))
            return method(*given, **named)

        return call

    for name, method in kept.items():
        setattr(backend, name, watching(method))
    try:
        yield
    finally:
        for name, method in kept.items():
            setattr(backend, name, method)
        seen["reduced"] = sorted(found)


@contextlib.contextmanager
def watched_documents(seen: dict[str, Any]) -> Iterator[None]:
    """Count the micro-batches whose positions are in host memory, and those read from a device."""
    of = Documents.of
    seen["known"], seen["read_back"] = 0, 0

    def watching(positions: Any, known: Any = None) -> Documents:
        assert known is None or torch.equal(known, positions)
        seen["read_back" if known is None else "known"] += 1
        return of(positions, known)

    Documents.of = watching  # type: ignore[method-assign]
    try:
        yield
    finally:
        Documents.of = of  # type: ignore[method-assign]


def timeouts() -> list[float]:
    """Seconds after which a collective fails, of every process group of this rank."""
    known = torch.distributed.distributed_c10d._world.pg_map
    backends = [group._get_backend(torch.device("cpu")) for group in known]
    return [backend.options._timeout.total_seconds() for backend in backends]


def main(cases: Path) -> None:
    rank = int(os.environ["RANK"])
    gc.freeze()  # the modules, which each collection would go through for half a second
    for case in json.loads(cases.read_text("utf-8")):
        run = run_spec(Path(case["folder"]), case["config"])
        if rank == 0:
            if "disk" in case:
                mount = ["mount", "-o", f"remount,size={case['disk']}", run.run_dir or ""]
                subprocess.run(mount, check=True)
            for how, pattern in case.get("damage", ()):
                damage(RunPaths(run).checkpoints, how, pattern)
        if case.get("killed_saving"):
            die_saving(*case["killed_saving"])
        world.wait_for_all()
        number, delay = case.get("signal", "SIGTERM"), case.get("slow_data", 0.0)
        stop_at = case.get("stop_at")
        if stop_at is not None:
            stop_at += run.parallelism.global_batch_size  # a step reads what the next one trains on
        rows = Watched(open_rows(run), stop_at, number, delay)
        seen: dict[str, Any] = {"case": case["name"], "samples": rows.samples}
        try:
            watched = (
                watched_optimizer(seen), watched_reductions(seen), watched_documents(seen),
                sabotaged(case.get("sabotage")),
            )  # fmt: skip
            with on_signals() as stop, contextlib.ExitStack() as stack:
                for watching in watched:
                    stack.enter_context(watching)
                seen["report"] = train(run, rows, DEVICE, stop)  # type: ignore[arg-type]
            seen["timeouts"] = timeouts()
        except (Stopped, UserError) as error:
            seen["error"] = f"{type(error).__name__}: {error}"
            seen["checkpoints"] = sorted(f.name for f in RunPaths(run).checkpoints.glob("*"))
        result = Path(case["folder"]) / f"{case['name']}.rank-{rank}.json"
        result.write_text(json.dumps(seen), "utf-8")
        # DeepSpeed remembers the grid of the last pipeline
        groups.mpu = None
        gc.collect()
        world.wait_for_all()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
