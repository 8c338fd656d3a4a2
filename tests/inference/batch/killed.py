"""Batch inference in processes that are killed: ``killed.py CALM KILLED``.

One process loads the libraries and forks the lives. CALM's run is done in one; KILLED's is
killed in each of five lives, when it has done another sixth or so, and done in the next.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from easyllm import runfile
from easyllm.inference.batch.run import infer
from easyllm.inference.hf import engine  # noqa: F401  (loads torch and transformers once)
from easyllm.paths import RunPaths
from easyllm.spec.run import RunSpec

KILLS = 5


def live(run: RunSpec) -> int:
    """A process that does the run; its number."""
    child = os.fork()
    if child == 0:
        try:
            metrics = infer(run)
            (RunPaths(run).root / "metrics.json").write_text(json.dumps(metrics))
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return child


def done(run: RunSpec) -> dict[str, Any]:
    _, status = os.waitpid(live(run), 0)
    assert status == 0
    return dict(json.loads((RunPaths(run).root / "metrics.json").read_text()))


def main() -> None:
    calm, killed = (runfile.load(Path(folder) / "run/run.yaml") for folder in sys.argv[1:])
    done(calm)
    whole = RunPaths(calm).results.stat().st_size
    journal = RunPaths(killed).results.with_name(".results.jsonl.journal")
    draw = random.Random(5)
    for kill in range(KILLS):
        child = live(killed)
        while not (journal.exists() and journal.stat().st_size > whole * (kill + 0.5) / 6):
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended before its kill"
            time.sleep(0.001)
        time.sleep(draw.random() / 50)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert not RunPaths(killed).results.exists()
    print(json.dumps({"kills": KILLS, **done(killed)}))


if __name__ == "__main__":
    main()
