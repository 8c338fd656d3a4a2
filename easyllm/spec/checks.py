"""Checks that compare several fields of the spec. No I/O."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from easyllm.spec.model import attention, published_config
from easyllm.spec.model.dimensions import shape_problems
from easyllm.spec.problems import ABSENT, Problem, near
from easyllm.spec.roles import Component, Family
from easyllm.spec.run import STAGES, RunSpec

IN_GGUF = ("llama", "mistral", "qwen2", "qwen3")
"""``model_type`` of the models that are written as GGUF."""
LONGEST_NAME = 150
"""Most bytes of a name that folders are named after. The folder's own name, which adds a hash and
the suffixes of an unfinished copy, has 255 at most."""
FOLDER = f"give letters, digits, '-' and '_', at most {LONGEST_NAME} bytes"


def problems(run: RunSpec) -> Iterator[Problem]:
    """Every cross-field problem of a spec whose fields were read without problems."""
    yield from _stages(run)
    yield from _batch(run)
    yield from _training(run)
    yield from _adapter(run)
    yield from _gguf(run)
    yield from _model(run)
    yield from _data(run)
    yield from _inference(run)
    for key, part in components(run):
        yield from part.problems(key, run)


def components(part: Any, key: str = "") -> Iterator[tuple[str, Component]]:
    """Every component of a spec with its dotted key."""
    if isinstance(part, Component):
        yield key, part
    if dataclasses.is_dataclass(part):
        part = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    if isinstance(part, Mapping):
        for name, value in part.items():
            yield from components(value, f"{key}.{name}" if key else str(name))


def _stages(run: RunSpec) -> Iterator[Problem]:
    for stage in run.stages:
        if stage not in STAGES:
            meant = near(stage, STAGES)
            known = f"one of {', '.join(STAGES)}"
            yield Problem("stages", stage, "no such stage", f"{known}; {meant}" if meant else known)
    known_stages = [s for s in run.stages if s in STAGES]
    right = [s for s in STAGES if s in known_stages]
    if known_stages != right:
        yield Problem(
            "stages",
            list(run.stages),
            "stages run once each, in the order in which they feed each other",
            f"give stages=[{','.join(right)}]",
        )
    if not _names_a_folder(run.name):
        yield Problem("name", run.name, "cannot be the name of a folder", FOLDER)


def _names_a_folder(name: str) -> bool:
    """Whether a folder can have this name, with the text that is put before and after it."""
    whole = name.isprintable() and not set(name) & set("/\\") and not name.startswith(".")
    return whole and 0 < len(name.encode("utf-8", "replace")) <= LONGEST_NAME


def _batch(run: RunSpec) -> Iterator[Problem]:
    layout, ranks = run.parallelism, run.hardware.ranks
    hardware = ("hardware.nodes", "hardware.devices_per_node")
    machines = (
        f"{ranks} ranks (hardware.nodes {run.hardware.nodes} x "
        f"hardware.devices_per_node {run.hardware.devices_per_node})"
    )
    stages = layout.stages
    if ranks % stages:
        divisors = [str(d) for d in range(1, min(ranks, 1024) + 1) if ranks % d == 0]
        yield Problem(
            "parallelism.pipeline_stages",
            stages,
            f"{machines} cannot be split into pipelines of {stages}",
            f"give a divisor of {ranks}: {', '.join(divisors)}; or other hardware",
            also=hardware,
        )
    elif layout.data_parallel and layout.data_parallel * stages != ranks:
        yield Problem(
            "parallelism.data_parallel",
            layout.data_parallel,
            f"{layout.data_parallel} replicas x {stages} pipeline stages are not {machines}",
            f"give {ranks // stages}, or null to derive it",
            also=("parallelism.pipeline_stages", *hardware),
        )
    else:
        replicas = layout.replicas(ranks)
        step = layout.micro_batch_size * replicas
        if layout.global_batch_size % step:
            down = layout.global_batch_size // step * step
            choices = " or ".join(str(n) for n in (down, down + step) if n)
            yield Problem(
                "parallelism.global_batch_size",
                layout.global_batch_size,
                f"is not a multiple of {step} (micro_batch_size {layout.micro_batch_size} x "
                f"{replicas} replicas)",
                f"give {choices}",
                also=(
                    "parallelism.micro_batch_size",
                    "parallelism.data_parallel",
                    "parallelism.pipeline_stages",
                    *hardware,
                ),
            )


def _training(run: RunSpec) -> Iterator[Problem]:
    training = run.training
    if training.steps is not None and training.epochs is not None:
        yield Problem(
            "training.epochs",
            training.epochs,
            f"training.steps={training.steps} is given as well",
            "give one of them; training.epochs=null or training.steps=null",
            also=("training.steps",),
        )
    if "train" in run.stages and training.steps is None and training.epochs is None:
        yield Problem(
            "training.steps",
            None,
            "the length of training is not given",
            "give training.steps or training.epochs",
            also=("training.epochs",),
        )
    profile = training.profile
    if profile and training.steps is not None:
        last = profile.start + profile.steps - 1
        if last > training.steps:
            yield Problem(
                "training.profile.start", profile.start,
                f"the training.profile.steps={profile.steps} from there end at step {last}, but "
                f"training ends at step {training.steps}",
                f"give at most {max(1, training.steps - profile.steps + 1)}",
                also=("training.profile.steps", "training.steps"),
            )  # fmt: skip
    if training.evaluate.every and not training.evaluate.fraction:
        yield Problem(
            "training.evaluate.every",
            training.evaluate.every,
            "nothing is held out to evaluate on",
            "give training.evaluate.fraction, e.g. 0.01",
            also=("training.evaluate.fraction",),
        )
    if training.evaluate.fraction >= 1:
        yield Problem(
            "training.evaluate.fraction", training.evaluate.fraction,
            "leaves nothing to train on", "give less than 1",
        )  # fmt: skip


def _adapter(run: RunSpec) -> Iterator[Problem]:
    if run.export.adapter == "merged":
        return
    key = "export.adapter"
    if "train" in run.stages and run.training.adapter is None:
        yield Problem(
            key, run.export.adapter, "the model itself is trained",
            "give training.adapter=lora, or export.adapter=merged", also=("training.adapter",),
        )  # fmt: skip
    elif run.model.init == "random":
        yield Problem(
            key, run.export.adapter, "model.init=random: no file holds the adapter's model",
            "give export.adapter=merged", also=("model.init",),
        )  # fmt: skip
    generating = {"evaluate", "infer", "serve"} & set(run.stages)
    if "export" in run.stages and generating and not run.inference.model:
        yield Problem(
            key, run.export.adapter, f"{' and '.join(sorted(generating))} would find no model",
            "give export.adapter=merged, or inference.model=<folder or hub id>",
            also=("inference.model",),
        )  # fmt: skip


def _gguf(run: RunSpec) -> Iterator[Problem]:
    export, key = run.export, "export.format"
    if export.format != "gguf":
        if export.gguf_type:
            yield Problem(
                "export.gguf_type", export.gguf_type, "applies to export.format=gguf only",
                "give export.format=gguf, or export.dtype", also=(key,),
            )  # fmt: skip
        return
    if export.adapter == "adapter":
        yield Problem(
            key, "gguf", "an adapter alone cannot be written as a GGUF file",
            "give export.adapter=merged, or export.format=safetensors", also=("export.adapter",),
        )  # fmt: skip
    if export.dtype:
        yield Problem(
            "export.dtype", export.dtype, "applies to export.format=safetensors only",
            "give export.gguf_type", also=(key,),
        )  # fmt: skip
    family = run.model.family
    if family and export.layout == "native" and family.model_type not in IN_GGUF:
        yield Problem(
            key, "gguf", f"{family.model_type} cannot be written, only {', '.join(IN_GGUF)}",
            "give export.layout=canonical, or export.format=safetensors",
            also=("model.family", "export.layout"),
        )  # fmt: skip


def _data(run: RunSpec) -> Iterator[Problem]:
    for name in run.data.sources:
        if not _names_a_folder(name):
            yield Problem(
                f"data.sources.{name}", ABSENT, "a source's name must be usable as a folder's",
                FOLDER,
            )  # fmt: skip
    if "tokenize" in run.stages and not run.data.sources:
        yield Problem(
            "data.sources",
            {},
            "there is no text to tokenize",
            "choose a data group and its path, e.g. data=text data.sources.text.path=my.txt",
        )


def _inference(run: RunSpec) -> Iterator[Problem]:
    for name in run.evaluation.tasks:
        if not _names_a_folder(name):
            yield Problem(
                f"evaluation.tasks.{name}", ABSENT, "a task's name must be usable as a file's",
                FOLDER,
            )  # fmt: skip
    if "infer" in run.stages and not run.inference.prompts:
        yield Problem(
            "inference.prompts",
            run.inference.prompts,
            "there is nothing to answer",
            "give a file with one prompt a line: inference.prompts=prompt.txt",
        )
    if "evaluate" in run.stages and not run.evaluation.tasks:
        yield Problem(
            "evaluation.tasks", {}, "there is nothing to evaluate on",
            "give one by its name in lm-eval, e.g. evaluation.tasks.python_keywords=null",
        )  # fmt: skip
    if run.evaluation.baseline == "model.path" and not run.model.path:
        yield Problem(
            "evaluation.baseline", "model.path", "model.path is not given",
            "give a folder or a hub id", also=("model.path",),
        )  # fmt: skip
    url = run.verify.url
    if url is not None and not url.startswith(("http://", "https://")):
        yield Problem(
            "verify.url", url, "is not the address of a server",
            "give one such as http://127.0.0.1:8000",
        )  # fmt: skip
    sampling = run.inference.sampling
    if sampling.min_tokens > sampling.max_tokens:
        yield Problem(
            "inference.sampling.min_tokens", sampling.min_tokens,
            f"is above inference.sampling.max_tokens={sampling.max_tokens}",
            f"give at most {sampling.max_tokens}", also=("inference.sampling.max_tokens",),
        )  # fmt: skip


def _model(run: RunSpec) -> Iterator[Problem]:
    model = run.model
    if model.init == "random" and not model.config and not model.path:
        yield Problem(
            "model.init", model.init, "random weights need the model's dimensions",
            "choose a model group, e.g. model=tiny, or give model.path",
            also=("model.config", "model.path"),
        )  # fmt: skip
    if "train" in run.stages and model.init == "pretrained" and not model.path:
        yield Problem(
            "model.path", None, "there are no weights to start from",
            "give a folder or a hub id, or model.init=random", also=("model.init",),
        )  # fmt: skip
    if model.revision is not None and not model.path:
        yield Problem(
            "model.revision", model.revision,
            "applies to a model on the hub, but model.path is not given",
            "give model.path=<hub id>, or leave it out", also=("model.path",),
        )  # fmt: skip
    yield from attention.problems(run)
    if model.family is None:
        return
    if model.config:
        yield from shape_problems(run, model.family, {**model.config, **model.overrides})


def config_problems(run: RunSpec, family: Family | None) -> Iterator[Problem]:
    """Keys of ``model.config`` and ``model.overrides`` that the family, if one is given, does not
    know, and values that these keys cannot have."""
    for group in ("config", "overrides"):
        given = getattr(run.model, group)
        for key, must in published_config.wrong(given):
            at = f"model.{group}.{key}"
            yield Problem(at, given[key], f"must be {must}", f"give {at}=<{must}>")
        for key, value in given.items():
            if family and family.config_keys and key not in family.config_keys:
                yield Problem(
                    f"model.{group}.{key}",
                    value,
                    f"no such key in the configuration of {family.model_type}",
                    near(key, family.config_keys, under=f"model.{group}")
                    or f"it has: {', '.join(sorted(family.config_keys))}",
                )
