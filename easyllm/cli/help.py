"""The texts that ``python -m easyllm`` prints when no run is given."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from easyllm import __version__
from easyllm.cli.library import Library
from easyllm.progress import columns
from easyllm.spec.run import STAGES, RunSpec

FIRST = (("python -m easyllm +recipe=demo", "all stages, offline, on 2 CPU cores"),)
THEN = (
    ("python -m easyllm +recipe=NAME key=value ...", "a recipe with your own values"),
    ("python -m easyllm +recipe=NAME stages=[]", "check the spec, start nothing"),
    ("python -m easyllm +recipe=NAME +smoke=cpu", "the same run, reduced to fit this machine"),
    ("python -m easyllm -m +recipe=NAME key=1,2", "one run for each value"),
    ("python -m easyllm RUN_DIR/run.yaml", "a run again"),
    ("python -m easyllm --cfg job +recipe=NAME", "every key of a spec"),
)
FLAGS = (
    ("-m", "run each combination of the values that keys are given, as in seed=1,2"),
    ("--config-dir FOLDER", "your own recipes and groups, besides these"),
    ("--trust", "import the code that a run.yaml names from any folder; look at it first"),
    ("--cfg job", "print the configuration; with --package KEY only a part"),
    ("--info defaults", "print the files of which it is composed"),
    ("--hydra-help", "print other options of Hydra, which composes it"),
    ("--version", "print the version"),
)
WIDEST = 100
"""Most columns of a line, on a wide terminal."""


def page(library: Library) -> str:
    lines = [
        *_wrapped(f"easyllm {__version__}:", "raw text to a served language model, from one spec."),
        "",
        *_wrapped("Stages:", " -> ".join(STAGES)),
        "",
        "Recipes",
        *_table([(name, library.line("recipe", name)) for name in library.options("recipe")]),
        "", "First", *_table(FIRST), "Then", *_table(THEN),
    ]  # fmt: skip
    return "\n".join(lines)


def help_page(library: Library) -> str:
    """The text of ``--help``: the commands, the groups with their options, the flags."""
    groups = [(name, ", ".join(library.options(name))) for name in library.groups()]
    shown = [(f"{name}=", options) for name, options in groups if name != "recipe"]
    return "\n".join(
        [
            page(library),
            "",
            "Groups, each with its options",
            *_table(shown),
            "Flags",
            *_table(FLAGS),
        ]
    )


def _table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """Two columns, the second wrapped between words."""
    first = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        lines += _wrapped(f"  {name:<{first}}".removesuffix(" "), text, " " * (first + 2))
    return lines


def _wrapped(first: str, text: str, indent: str = "  ") -> list[str]:
    return textwrap.wrap(
        text, min(columns(), WIDEST), initial_indent=f"{first} ", subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


def valid(run: RunSpec) -> str:
    """The message about a spec that was only checked."""
    layout, hardware = run.parallelism, run.hardware
    ranks = hardware.ranks
    return (
        f"{run.name}: the spec is valid; nothing was started.\n"
        f"  {ranks} ranks: {layout.stages} pipeline stages x {layout.replicas(ranks)} replicas\n"
        f"  {layout.global_batch_size} rows x {run.data.seq_len} tokens a step: micro-batches of "
        f"{layout.micro_batch_size}, {layout.accumulation(ranks)} to a step"
    )
