"""Profiling some steps with torch's profiler, on demand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from easyllm.files import atomic_write
from easyllm.parallelism import world
from easyllm.spec.training import ProfileSpec

ROWS = 40
"""Operations in the table."""


class Profiler:
    """Profiles the steps in ``asked``, if any, on this rank.

    ``folder/step-N/`` gets ``rank-R.json.gz``, a trace in Chrome's format, and ``rank-R.txt``, the
    operations that took longest. A profile that is stopped before its last step writes nothing.
    """

    def __init__(self, asked: ProfileSpec | None, folder: Path, device: torch.device):
        self.asked, self.folder, self.device = asked, folder, device
        self.running: Any = None

    def before(self, step: int) -> bool:
        """To be called before each step, which counts from 1; returns whether it is profiled."""
        if self.asked and step == self.asked.start:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            self.running = profile(activities=activities)
            self.running.start()
        return self.running is not None

    def after(self, step: int) -> None:
        """To be called after each step."""
        if self.running is None or self.asked is None:
            return
        if step < self.asked.start + self.asked.steps - 1:
            self.running.step()
            return
        found, self.running = self.running, None
        found.stop()
        base = self.folder / f"step-{self.asked.start:08}" / f"rank-{world.rank()}"
        with atomic_write(base.with_suffix(".json.gz"), durable=False) as temporary:
            # its own name decides whether the profiler compresses
            plain = temporary.with_name(f"{temporary.name}.json.gz")
            found.export_chrome_trace(str(plain))
            plain.replace(temporary)
        by = "self_cuda_time_total" if self.device.type == "cuda" else "self_cpu_time_total"
        with atomic_write(base.with_suffix(".txt"), durable=False) as temporary:
            table = found.key_averages().table(sort_by=by, row_limit=ROWS)
            temporary.write_text(table, "utf-8")
        if world.is_main():
            print(f"profile of {self.asked.steps} steps: {base.parent}", flush=True)

    def stop(self) -> None:
        """Stop a profile whose remaining steps will not be made."""
        if self.running is not None:
            self.running.stop()
            self.running = None
