"""Notes about settings that are allowed but seldom intended."""

from __future__ import annotations

from collections.abc import Iterator

from easyllm.data.executors.components import Local
from easyllm.data.store import manifest
from easyllm.preflight.machine import ON_DEVICE, cuda_devices
from easyllm.spec.run import RunSpec


def notes(run: RunSpec) -> Iterator[str]:
    """The notes that are printed at the beginning and the end of a run."""
    hardware = run.hardware
    uses = sorted(ON_DEVICE & set(run.stages))
    if uses and hardware.device == "cpu" and (found := cuda_devices()):
        yield (
            f"hardware.device = cpu, and this machine has {found} CUDA device"
            f"{'s' if found > 1 else ''}: {', '.join(uses)} without them; hardware=h100 uses one"
        )
    data = [stage for stage in manifest.STAGES if stage in run.stages]
    if data and hardware.nodes > 1 and isinstance(run.data.engine, Local):
        yield (
            f"{', '.join(data)} on the first of {hardware.nodes} machines alone, since data.engine "
            "is local; data.engine=spark with data.engine.master=<a cluster> shares them out"
        )
    sources = run.data.sources
    if "train" in uses and hardware.device == "cuda" and any(s.sample for s in sources.values()):
        names = ", ".join(f"data.sources.{name}" for name, s in sources.items() if s.sample)
        yield (
            f"{names} is half a megabyte of English for trials; to train on text of your own "
            "give data=text data.sources.text.path=<file>"
        )
