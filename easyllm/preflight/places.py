"""Checks of files and folders that must exist, or that must not exist."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from easyllm.data.tokenizers import components as tokenizers
from easyllm.errors import UserError, WrongValue
from easyllm.models import source, tensor_files
from easyllm.paths import RUNS
from easyllm.serving.http.address import bound
from easyllm.serving.http.auth import VARIABLE, load_keys
from easyllm.serving.http.hosts import host_name, local_only
from easyllm.spec.problems import ABSENT, Problem, near
from easyllm.spec.run import RunSpec
from easyllm.tasks import builtin

DERIVED = ("run_dir", "data.dir")
"""Keys of folders that are in ``RUNS`` of the current folder where they are not given."""


def problems(run: RunSpec) -> Iterator[Problem]:
    if not run.stages or "tokenize" in run.stages:
        yield from _sources(run)
    if run.model.path and (complaint := source.problem(run.model.path)):
        yield Problem("model.path", run.model.path, complaint, "give a folder or a hub id")
    elif run.model.path:
        yield from _weights(run, run.model.path)
        yield from _revision(run, run.model.path)
    tokenizer = getattr(run.data.tokenizer, "path", None)
    if isinstance(tokenizer, str) and (complaint := tokenizers.problem(tokenizer)):
        yield Problem("data.tokenizer.path", tokenizer, complaint, tokenizers.PATHS)
    yield from _model_tokenizer(run)
    yield from _evaluation(run)
    yield from _inference(run)
    if "serve" in run.stages:
        yield from _serving(run)
    checkpoint = run.export.checkpoint
    if checkpoint and not (Path(checkpoint) / "manifest.json").is_file():
        yield Problem(
            "export.checkpoint", checkpoint, "is not a checkpoint",
            "give RUN_DIR/checkpoints/step-N, or null for the run's newest",
        )  # fmt: skip
    if "export" in run.stages and run.export.format == "gguf" and find_spec("gguf") is None:
        yield Problem(
            "export.format", "gguf", "writing GGUF needs the gguf package",
            "pip install 'easyllm[gguf]'",
        )  # fmt: skip
    folders = (
        ("run_dir", run.run_dir),
        ("data.dir", run.data.dir),
        ("data.cache", run.data.cache),
        ("model.cache", run.model.cache),
        ("inference.output", run.inference.output and str(Path(run.inference.output).parent)),
    )
    for key, folder in folders:
        if folder:
            yield from _folder(key, Path(folder).expanduser())
    derived = [key for key, folder in folders if folder is None and key in DERIVED]
    if derived and run.stages:
        yield from _folder(derived[0], Path.cwd() / RUNS)


def _sources(run: RunSpec) -> Iterator[Problem]:
    for name, reader in run.data.sources.items():
        path = getattr(reader, "path", None)
        key = f"data.sources.{name}" + (".path" if path is not None else "")
        try:
            reader.files()
        except (OSError, UserError) as error:
            yield Problem(key, path, str(error), f"give {key}=<a file or folder that exists>")


def _weights(run: RunSpec, path: str) -> Iterator[Problem]:
    """Weight files that training would read and that are missing or incomplete."""
    folder = source.local(path)
    if "train" in run.stages and run.model.init == "pretrained" and folder and folder.is_dir():
        for complaint in tensor_files.problems(folder):
            yield Problem(
                "model.path", path, complaint, "fetch its files again, or give model.init=random"
            )


def _revision(run: RunSpec, path: str) -> Iterator[Problem]:
    """A revision of a model that has no revisions."""
    if run.model.revision is not None and (place := source.local(path)):
        kind = "folder" if place.is_dir() else "file"
        yield Problem(
            "model.revision", run.model.revision,
            f"applies to a model on the hub, but model.path={path} is a {kind} of this machine",
            "leave it out, or give model.path=<hub id>", also=("model.path",),
        )  # fmt: skip


def _model_tokenizer(run: RunSpec) -> Iterator[Problem]:
    """Problems with the tokenizer of the model at ``model.path``, where the run uses it."""
    taken = "tokenize" in run.stages and getattr(run.data.tokenizer, "path", "") is None
    if taken and run.model.path and (complaint := source.tokenizer_problem(run.model.path)):
        yield Problem(
            "model.path", run.model.path, complaint,
            "give data.tokenizer.path=<a folder or hub id with the model's published tokenizer>",
        )  # fmt: skip


def _evaluation(run: RunSpec) -> Iterator[Problem]:
    asked = {"evaluate": ("evaluation.tasks", run.evaluation.tasks),
             "train": ("training.evaluate.tasks", run.training.evaluate.tasks)}  # fmt: skip
    for key, tasks in (asked[stage] for stage in asked if stage in run.stages):
        for name, task in tasks.items():
            path = task.path if task else None
            meant = "" if path or name in builtin.TASKS else near(name, builtin.TASKS)
            if meant:
                yield Problem(
                    f"{key}.{name}", ABSENT, "no such task", f"{meant} ({key}.<name>=null)"
                )
            if task and task.path and not Path(task.path).is_file():
                yield Problem(
                    f"{key}.{name}.path", task.path, "no such file",
                    "give a YAML file in lm-eval's format, or null for a task that lm-eval has",
                )  # fmt: skip
    if "evaluate" not in run.stages:
        return
    baseline = run.evaluation.baseline
    if baseline not in (None, "model.path") and (complaint := source.problem(str(baseline))):
        folder = Path(str(baseline)).expanduser()
        if not (folder / "export" / "config.json").is_file():
            yield Problem(
                "evaluation.baseline", baseline, complaint,
                "give a folder, a hub id, the directory of a run, or model.path",
            )  # fmt: skip


def _inference(run: RunSpec) -> Iterator[Problem]:
    prompts, model = run.inference.prompts, run.inference.model
    local = isinstance(prompts, str) and "://" not in prompts
    if "infer" in run.stages and local and not Path(str(prompts)).is_file():
        yield Problem(
            "inference.prompts", prompts, "no such file",
            "give a text file with one prompt a line, or .jsonl or .parquet",
        )  # fmt: skip
    output = run.inference.output
    if "infer" in run.stages and output and Path(output).suffix not in (".jsonl", ".parquet"):
        yield Problem(
            "inference.output", output, "has no known format", "give a .jsonl or .parquet file"
        )
    if not model or not {"verify", "evaluate", "infer", "serve"} & set(run.stages):
        return
    if complaint := source.problem(model) or source.tokenizer_problem(model):
        yield Problem("inference.model", model, complaint, "give a folder or a hub id")
    elif (folder := source.local(model)) and folder.is_dir():
        for complaint in tensor_files.problems(folder):
            yield Problem("inference.model", model, complaint, "fetch its files again")


def _serving(run: RunSpec) -> Iterator[Problem]:
    """API keys must be readable, and must exist where other machines can send requests."""
    serving = run.serving
    for host in serving.allowed_hosts:
        if host_name(host) is None:
            yield Problem(
                "serving.allowed_hosts",
                host,
                "is not a host name",
                "give names as in an address, e.g. chat.example.org",
            )
    try:
        bound(serving).close()
    except WrongValue as error:
        yield Problem(error.key, error.value, error.what, error.remedy)
    try:
        keys = load_keys(serving)
    except WrongValue as error:
        yield Problem(error.key, error.value, error.what, error.remedy)
        return
    if not (keys or serving.allow_unauthenticated or local_only(serving.host)):
        yield Problem(
            "serving.host", serving.host, "other machines could send requests without a key",
            f"give serving.api_key_file=<file> or {VARIABLE} in the environment; "
            "serving.allow_unauthenticated=true allows it all the same",
            also=("serving.allow_unauthenticated",),
        )  # fmt: skip


def _folder(key: str, folder: Path) -> Iterator[Problem]:
    """Problems with a folder that will be made or written to."""
    standing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not standing.is_dir():
        yield Problem(key, str(folder), f"{standing} is a file", "give a folder")
    elif not os.access(standing, os.W_OK | os.X_OK) or standing.is_relative_to("/proc"):
        yield Problem(
            key, str(folder), f"{standing} cannot be written to", f"give {key}=<another folder>"
        )
