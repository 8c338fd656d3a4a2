"""Whether two runs computed the same: ``python -m tests.compare_runs RUN RUN``.

For changes that must not change what is computed: give the same command before and after, each in
a ``run_dir`` and ``data.dir`` of its own, and compare. Compared are the losses, norms and learning
rates of ``metrics.jsonl``, the weights of the export, the store's documents (by the checksums of
its manifests, and its tokenizer) and the answers of inference. Prints a line for each; exits 1
where something differs, or where there is nothing to compare.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from easyllm.files import sha256

COMPARED = ("step", "loss", "eval_loss", "grad_norm", "lr", "tokens")
"""Of a line of ``metrics.jsonl``; the rest are times, rates and memory."""


def facts(run: Path) -> Iterator[tuple[str, Any]]:
    """What the run in this directory computed, by a name for each part."""
    if (metrics := run / "metrics.jsonl").is_file():
        lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
        yield "metrics", [{key: line.get(key) for key in COMPARED} for line in lines]
    for folder in ("export", "adapter"):
        for file in sorted((run / folder).glob("*.safetensors")):
            yield f"{folder}/{file.name}", sha256(file)
    store = Path(yaml.safe_load((run / "run.yaml").read_text("utf-8"))["data"]["dir"])
    for stage in ("tokens", "shuffled", "partitions"):
        if (manifest := store / stage / "manifest.json").is_file():
            made = json.loads(manifest.read_text("utf-8"))
            yield (
                stage,
                {
                    "tokenizer": made["tokenizer"],
                    **{name: source["checksum"] for name, source in made["sources"].items()},
                    "files": [f["sha256"] for s in made["sources"].values() for f in s["files"]],
                },
            )
    for file in sorted(path for path in (run / "inference").glob("*") if path.name[0] != "."):
        yield f"inference/{file.name}", file.read_text("utf-8")


def main(one: Path, other: Path) -> int:
    first, second = dict(facts(one)), dict(facts(other))
    different = 0
    for name in [*first, *(name for name in second if name not in first)]:
        same = name in first and first.get(name) == second.get(name)
        different += not same
        print(f"{'same' if same else 'differs':8} {name}")
    return int(bool(different or not first))


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:3])))
