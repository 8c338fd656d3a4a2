"""What ``python -m easyllm`` says when nothing is asked of it."""

from __future__ import annotations

import textwrap

from easyllm import __version__
from easyllm.cli.library import Library
from easyllm.spec.run import STAGES, RunSpec

FIRST = (("python -m easyllm +recipe=demo", "the whole way, offline, on 2 CPU cores"),)
THEN = (
    ("python -m easyllm +recipe=NAME key=value ...", "a recipe with your own values"),
    ("python -m easyllm +recipe=NAME stages=[]", "check the spec, start nothing"),
    ("python -m easyllm +recipe=NAME +smoke=cpu", "the same run, shrunk to this machine"),
    ("python -m easyllm -m +recipe=NAME key=1,2", "one run for each value"),
    ("python -m easyllm RUN_DIR/run.yaml", "a run again"),
    ("python -m easyllm --cfg job +recipe=NAME", "every key of a spec"),
)


def page(library: Library) -> str:
    recipes = library.options("recipe")
    width = max(map(len, recipes)) + 2
    lines = [
        f"easyllm {__version__}: raw text to a served language model, from one spec.",
        "",
        f"Stages: {' -> '.join(STAGES)}",
        "",
        "Recipes",
    ]
    for name in recipes:
        lines += textwrap.wrap(
            library.line("recipe", name), 98,
            initial_indent=f"  {name:<{width}}", subsequent_indent=" " * (width + 2),
        )  # fmt: skip
    lines += ["", "First", *_columns(FIRST), "Then", *_columns(THEN)]
    return "\n".join(lines)


def _columns(rows: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"  {command:<48} {what}" for command, what in rows]


def sound(run: RunSpec) -> str:
    """What is said of a spec that was only checked."""
    layout, hardware = run.parallelism, run.hardware
    ranks = hardware.ranks
    return (
        f"{run.name}: the spec is sound; nothing was started.\n"
        f"  {ranks} ranks: {layout.stages} pipeline stages x {layout.replicas(ranks)} replicas\n"
        f"  {layout.global_batch_size} rows x {run.data.seq_len} tokens a step: micro-batches of "
        f"{layout.micro_batch_size}, {layout.accumulation(ranks)} to a step"
    )
