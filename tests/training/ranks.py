"""Trains many small cases in one process group: ``python -m tests.training.ranks CASES.json``.

Starting ranks costs seconds, so tests share a launch. Each rank writes what it saw to
``<case's folder>/rank-<n>.json``.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from easyllm.parallelism import world

DEVICE = world.start("cpu")

from deepspeed.utils import groups  # noqa: E402  after the accelerator is settled

from easyllm.data.rows import open_rows  # noqa: E402
from easyllm.errors import UserError  # noqa: E402
from easyllm.paths import RunPaths  # noqa: E402
from easyllm.training.loop import train  # noqa: E402
from easyllm.training.stopping import Stopped, on_sigterm  # noqa: E402
from tests.support import run_spec  # noqa: E402


class Watched:
    """Rows that remember which samples were read, and send SIGTERM at one of them."""

    def __init__(self, rows: Any, sigterm_at: int | None):
        self.rows, self.sigterm_at = rows, sigterm_at
        self.samples: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rows, name)

    def sample(self, index: int) -> Any:
        self.samples.append(index)
        if index == self.sigterm_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return self.rows.sample(index)


def main(cases: Path) -> None:
    rank = int(os.environ["RANK"])
    for case in json.loads(cases.read_text("utf-8")):
        run = run_spec(Path(case["folder"]), case["config"])
        if case.get("truncate") and rank == 0:
            for file in RunPaths(run).checkpoints.glob(case["truncate"]):
                file.write_bytes(file.read_bytes()[:-1])
        world.wait_for_all()
        rows = Watched(open_rows(run), case.get("sigterm_at"))
        seen: dict[str, Any] = {"case": case["name"], "samples": rows.samples}
        try:
            with on_sigterm() as stop:
                seen["report"] = train(run, rows, DEVICE, stop)  # type: ignore[arg-type]
        except (Stopped, UserError) as error:
            seen["error"] = f"{type(error).__name__}: {error}"
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
