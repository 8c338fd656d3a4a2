"""CPU time to accept or refuse a spec, against an empty ``hydra.main`` app.

Each command is run beside the empty app, in turn, PAIRS times; the ratio is the median of
the pairs' ratios. Exits 1 when one is above the limit, or does not end with the status it
should.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LIMIT = 1.3
EMPTY = """\
import hydra

@hydra.main(config_path=None, version_base="1.3")
def main(config):
    pass

main()
"""
MISSPELT = """\
# @package _global_
defaults: [demo]
training:
  stepz: 3
"""


def commands(folder: Path) -> dict[str, tuple[list[str], int]]:
    """Arguments and expected exit status, by what they show."""
    recipes = folder / "conf" / "recipe"
    recipes.mkdir(parents=True)
    (recipes / "mine.yaml").write_text(MISSPELT)
    demo = "+recipe=demo"
    return {
        "a 64-GPU recipe checked": (["+recipe=baichuan13b_pipe", "stages=[]"], 0),
        "misspelt key": ([demo, "model.pth=x"], 2),
        "three stages on two devices": ([demo, "parallelism.pipeline_stages=3"], 2),
        "text for a number": ([demo, "training.steps=ten"], 2),
        "misspelt key in a user's recipe": (
            ["+recipe=mine", "--config-dir", str(folder / "conf")], 2,
        ),
        "unknown recipe": (["+recipe=demmo"], 2),
        "a target of os.system": ([demo, "training.optimizer._target_=os.system"], 2),
        "a source that is absent": ([demo, "data=text", "data.sources.text.path=absent.txt"], 2),
    }  # fmt: skip


def cpu_seconds(command: list[str], cwd: Path, status: int) -> float:
    """User and system time of a process and its children."""
    before = os.times()
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    after = os.times()
    if done.returncode != status:
        sys.exit(f"{command}: status {done.returncode}, not {status}\n{done.stderr}")
    return (after.children_user + after.children_system) - (
        before.children_user + before.children_system
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=7)
    pairs = parser.parse_args().pairs
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty.py").write_text(EMPTY)
        work = folder / "work"
        work.mkdir()
        empty = [sys.executable, str(folder / "empty.py"), "hydra.run.dir=.",
                 "hydra.output_subdir=null"]  # fmt: skip
        print(f"{'command':34} {'easyllm':>9} {'empty app':>9} {'ratio':>6}")
        for what, (words, status) in commands(folder).items():
            ours, theirs = [], []
            for _ in range(pairs):
                theirs.append(cpu_seconds(empty, work, 0))
                ours.append(cpu_seconds([sys.executable, "-m", "easyllm", *words], work, status))
            ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
            worst = max(worst, ratio)
            print(
                f"{what:34} {statistics.median(ours):8.2f}s {statistics.median(theirs):8.2f}s "
                f"{ratio:6.2f}"
            )
        left = [p.name for p in work.iterdir() if p.name != "empty.log"]
    print(json.dumps({"highest_ratio": round(worst, 3), "limit": LIMIT, "left_behind": left}))
    return int(worst > LIMIT or bool(left))


if __name__ == "__main__":
    sys.exit(main())
