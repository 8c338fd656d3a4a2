"""The messages of a run while it runs and when it is done."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from easyllm.components import outside
from easyllm.paths import RunPaths
from easyllm.preflight.notes import notes
from easyllm.printable import printable
from easyllm.spec.run import RunSpec

Record = Mapping[str, Any]


def say(text: str) -> None:
    print(printable(f"easyllm | {text}"), file=sys.stderr, flush=True)


def failure(stage: str, error: str, logs: Path | None) -> None:
    say(f"{stage} failed: {error}")
    if logs is not None:
        say(f"its log: {shown(logs)}")


def shown(path: Path | str) -> str:
    """The shortest form of a path from the current folder."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def again(run: RunSpec, file: Path) -> str:
    """The command that runs a spec on disk from the current folder. User code in other folders has
    to be trusted again with a flag."""
    trust = " --trust" if outside(run.components.path, [Path.cwd()]) else ""
    return f"{command()} {shlex.quote(shown(file))}{trust}"


def command() -> str:
    """How this program is started from the shell that started it."""
    found = shutil.which("python")
    here = Path(sys.executable)
    name = "python" if found and Path(found).parent == here.parent else shown(here)
    return f"{shlex.quote(name)} -m easyllm"


def line(record: Record) -> str:
    return f"{record['stage']}: done in {_seconds(record['seconds'])}"


def table(run: RunSpec, made: Sequence[tuple[Record, bool]], seconds: float) -> None:
    """Print the closing table: the results, their places, the metrics, and what to try next."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = Table(title=f"{run.name}: done in {_seconds(seconds)}", title_justify="left")
    for heading, justify in (("stage", "left"), ("made", "left"), ("where", "left"),
                             ("time", "right")):  # fmt: skip
        rows.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for record, passed in made:
        rows.add_row(
            record["stage"],
            escape(made_by(record["stage"], record["metrics"])),
            escape(_where(run, record["stage"])),
            "skipped" if passed else _seconds(record["seconds"]),
        )
    # a fixed width where there is no terminal keeps logs readable
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(rows)
    for sample in next((r["metrics"].get("samples", []) for r, _ in made
                        if r["stage"] == "infer"), []):  # fmt: skip
        text = " ".join(f"{sample['prompt']} ▸ {sample['text']}".split())
        console.print(f"  {escape(printable(text))}", highlight=False)
    for note in notes(run):
        console.print(f"  note: {escape(note)}", highlight=False)
    console.print("Next", style="bold")
    for what, command in _next(run):
        console.print(f"  {what:<28} {escape(command)}", highlight=False, soft_wrap=True)


def made_by(stage: str, metrics: Mapping[str, Any]) -> str:
    """A stage's result in a few words."""
    if stage == "train" and metrics.get("first_loss") is not None:
        text = f"loss {metrics['first_loss']:.3f} -> {metrics['last_loss']:.3f}"
        if metrics.get("eval_loss") is not None:
            text += f", held out {metrics['eval_loss']:.3f}"
        return text + f"; {_rate(metrics['tokens_per_second'])} tokens/s"
    words = []
    for key, unit in (
        ("documents", "document"), ("tokens", "token"), ("partitions", "partition"),
        ("compared", "comparison"), ("items", "item"), ("prompts", "prompt"),
        ("generated_tokens", "token"), ("requests", "request"),
    ):  # fmt: skip
        if key in metrics:
            words.append(f"{metrics[key]:,} {unit}{'' if metrics[key] == 1 else 's'}")
    if metrics.get("rejected"):
        words.append(f"{metrics['rejected']:,} rejected (rejected.jsonl)")
    if metrics.get("failed"):
        words.append(f"{metrics['failed']:,} failed (see error)")
    if "bytes" in metrics:
        words.append(f"{metrics['bytes'] / 1e6:,.1f} MB")
    rate = metrics.get("tokens_per_second")
    if rate and not metrics.get("reused"):
        words.append(f"{_rate(rate)} tokens/s")
    if metrics.get("reused"):
        words.append("from the shared store")
    return "; ".join(words)


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _where(run: RunSpec, stage: str) -> str:
    paths = RunPaths(run)
    places = {
        "tokenize": paths.store.tokens,
        "shuffle": paths.store.shuffled,
        "repartition": paths.store.partitions,
        "inspect": paths.inspection,
        "train": paths.checkpoints,
        "export": paths.export,
        "verify": paths.verification,
        "evaluate": paths.evaluation / "results.json",
        "infer": paths.results,
    }
    return shown(places[stage]) if stage in places else ""


def _next(run: RunSpec) -> list[tuple[str, str]]:
    paths, rerun = RunPaths(run), again(run, RunPaths(run).spec)
    ideas = [("read its metrics", f"tail -n 3 {shown(paths.metrics)}")]
    if not paths.metrics.exists():
        ideas.clear()
    written = paths.gguf if paths.gguf.is_file() else paths.export
    if written.is_file() or (written / "config.json").is_file():  # an adapter cannot be served
        ideas += [
            ("compare it with training", f"{rerun} stages=[verify]"),
            ("serve the model", f"{rerun} stages=[serve]"),
            ("ask it something", f"{command()} stages=[infer]{_like(run)} "
             f"inference.model={shown(written)} inference.prompts.mine='Once upon a time'"),
        ]  # fmt: skip
    elif "train" not in run.stages and not paths.export.is_dir():
        ideas.append(("train on it", f"{rerun} stages=[train,export]"))
    ideas.append(("run it with another value", f"{rerun} seed=1"))
    return ideas


def _like(run: RunSpec) -> str:
    """Words with which another run uses this one's kind of device and prompt."""
    words = " inference.chat=true" if run.inference.chat else ""
    return words + (" hardware=h100 model.dtype=bfloat16" if run.hardware.device == "cuda" else "")


def _seconds(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)} min {rest:.0f} s" if minutes else f"{rest:.1f} s"
