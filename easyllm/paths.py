"""Where the parts of a run lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from easyllm.spec.run import RunSpec

RUNS = "runs"
"""The folder, below the current one, that holds what no key names a place for."""

RUN_FILE, RECORDS = "run.yaml", "stages"
"""Of a run's directory: its resolved spec, and the folder with a record of each stage."""


@dataclass(frozen=True)
class StorePaths:
    """The token store: what each data stage writes, all under one folder.

    ``<stage>/manifest.json`` is written last; a stage's output is whole when it is there.
    """

    root: Path

    @property
    def tokenizer(self) -> Path:
        return self.root / "tokenizer"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def shuffled(self) -> Path:
        return self.root / "shuffled"

    @property
    def partitions(self) -> Path:
        return self.root / "partitions"


@dataclass(frozen=True)
class RunPaths:
    """A run directory. ``run`` must be resolved: its ``run_dir``, ``data.dir`` and
    ``model.cache`` are absolute paths."""

    run: RunSpec

    @property
    def root(self) -> Path:
        assert self.run.run_dir is not None, "resolved specs name their run_dir"
        return Path(self.run.run_dir)

    @property
    def store(self) -> StorePaths:
        assert self.run.data.dir is not None, "resolved specs name their data.dir"
        return StorePaths(Path(self.run.data.dir))

    @property
    def models(self) -> Path:
        """Models converted from another format, shared by runs."""
        assert self.run.model.cache is not None, "resolved specs name their model.cache"
        return Path(self.run.model.cache)

    @property
    def spec(self) -> Path:
        return self.root / RUN_FILE

    @property
    def command(self) -> Path:
        """The spec of a command that uses what the run has trained, and trains nothing."""
        return self.records / RUN_FILE

    @property
    def records(self) -> Path:
        return self.root / RECORDS

    def record(self, stage: str) -> Path:
        return self.records / f"{stage}.json"

    def logs(self, stage: str) -> Path:
        return self.root / "logs" / stage

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def deepspeed(self) -> Path:
        """DeepSpeed's settings in the last start of training, its defaults included."""
        return self.root / "deepspeed.json"

    @property
    def profile(self) -> Path:
        """Traces of profiled steps, a folder for each time."""
        return self.root / "profile"

    @property
    def heldout(self) -> Path:
        """What evaluation ran on, JSON Lines of ``input_ids`` and ``labels``, a document each."""
        return self.root / "heldout.jsonl"

    @property
    def inspection(self) -> Path:
        """The page that shows what training reads."""
        return self.root / "inspect.html"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def export(self) -> Path:
        """The folder of the exported model."""
        asked = self.run.export
        if asked.output:
            return Path(asked.output)
        if asked.adapter == "adapter":
            return self.root / "adapter"
        return self.root / ("gguf" if asked.format == "gguf" else "export")

    @property
    def gguf(self) -> Path:
        """The export as one GGUF file."""
        return self.export / f"{self.run.name}.gguf"

    @property
    def results(self) -> Path:
        """What batch inference wrote."""
        output = self.run.inference.output
        return Path(output) if output else self.root / "inference" / "results.jsonl"
