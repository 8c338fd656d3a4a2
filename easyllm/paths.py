"""The paths of a run's files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from easyllm.files import stable_hash
from easyllm.spec.run import RunSpec
from easyllm.spec.schema import write

RUNS = "runs"
"""The folder, below the current one, for files whose place no key gives."""

RUN_FILE, RECORDS = "run.yaml", "stages"
"""Names in a run's directory: its resolved spec, and the folder with a record of each stage."""


@dataclass(frozen=True)
class StorePaths:
    """The token store, a folder with the files of each data stage.

    ``<stage>/manifest.json`` is written last; a stage's output is complete when this file exists.
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
        """The spec of a command that uses the trained model of the run, and does not train."""
        return self.records / RUN_FILE

    @property
    def serving(self) -> Path:
        """The same of a server, beside which other commands run."""
        return self.records / "serve.yaml"

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
        """DeepSpeed's settings in the last start of training, including its defaults."""
        return self.root / "deepspeed.json"

    @property
    def profile(self) -> Path:
        """Traces of profiled steps, a folder for each time."""
        return self.root / "profile"

    @property
    def heldout(self) -> Path:
        """The held-out documents of evaluation: JSON Lines with ``input_ids`` and ``labels``, a
        document a line."""
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
    def verification(self) -> Path:
        """The comparisons of the trained model with what is served."""
        return self.root / "verify.json"

    @property
    def evaluation(self) -> Path:
        """The folder of the results of the run's tasks, with the items. Other tasks, and other
        settings of the same, have a folder of their own."""
        settings = write(self.run.evaluation)
        del settings["batch_size"]  # changes no result
        names = "+".join(self.run.evaluation.tasks)
        return self.root / "evaluation" / f"{names[:60]}-{stable_hash(settings, 8)}"

    @property
    def results(self) -> Path:
        """The results of batch inference."""
        output = self.run.inference.output
        return Path(output) if output else self.root / "inference" / "results.jsonl"
