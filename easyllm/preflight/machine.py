"""Checks of devices and optional packages."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from easyllm.spec.checks import components
from easyllm.spec.problems import Problem
from easyllm.spec.roles import Launcher
from easyllm.spec.run import RunSpec

ON_DEVICE = {"train", "verify", "evaluate", "infer", "serve"}
"""Stages that use the devices."""
FUSED_LOSS = (2, 13)
"""The first torch version with ``linear_cross_entropy``."""
VARLEN = (2, 11)
"""The first torch version whose ``varlen_attn`` takes a scale and a window."""


def problems(run: RunSpec) -> Iterator[Problem]:
    uses = ON_DEVICE & set(run.stages)
    if uses and run.hardware.device == "cuda" and run.hardware.nodes == 1:
        found = cuda_devices()
        wanted = run.hardware.devices_per_node if "train" in uses else 1
        if found < wanted:
            yield Problem(
                "hardware.devices_per_node",
                run.hardware.devices_per_node,
                f"this machine has {found} CUDA devices",
                "choose a hardware group that fits, or +smoke=cpu for a trial without GPUs",
                also=("hardware.device",),
            )
        if run.model.attention == "flash_attention_2" and find_spec("flash_attn") is None:
            yield Problem(
                "model.attention", run.model.attention, "the package flash-attn is not installed",
                "pip install 'easyllm[flash-attn]', or give model.attention=varlen",
            )  # fmt: skip
        if run.model.attention == "varlen" and _numbers(_version("torch")) < VARLEN:
            yield Problem(
                "model.attention", run.model.attention,
                f"torch has it from 2.11 on, and this is {_version('torch')}",
                "give model.attention=sdpa, or pip install 'torch>=2.11'",
            )  # fmt: skip
    if "train" in run.stages:
        yield from _loss_problems(run)
    tasks = "train" in run.stages and run.training.evaluate.tasks
    if ("evaluate" in run.stages or tasks) and find_spec("lm_eval") is None:
        key, value = ("training.evaluate.tasks", list(tasks)) if tasks else ("stages", "evaluate")
        yield Problem(
            key, value, "needs the package lm-eval, which is not installed",
            "pip install 'easyllm[evaluation]'",
        )  # fmt: skip
    for key, part in components(run):
        if isinstance(part, Launcher) and "train" not in run.stages:
            continue  # no ranks are started
        yield from part.missing(key, run)
        for module, extra in part.requires.items():
            if find_spec(module) is None:
                yield Problem(
                    f"{key}._target_", type(part).__name__, f"needs the package {module}",
                    f"pip install 'easyllm[{extra}]'",
                )  # fmt: skip


def _loss_problems(run: RunSpec) -> Iterator[Problem]:
    if run.training.loss != "linear_cross_entropy" or _numbers(_version("torch")) >= FUSED_LOSS:
        return
    yield Problem(
        "training.loss", run.training.loss,
        f"torch has it from 2.13 on, and this is {_version('torch')}",
        "give training.loss=cross_entropy, or pip install 'torch>=2.13'",
    )  # fmt: skip


def _version(package: str) -> str:
    from importlib.metadata import version  # takes as long to import as all checks to run

    return version(package)


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split(".")[:2])


def cuda_devices() -> int:
    """CUDA devices that this process may use, counted without loading torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    return len([p for p in Path("/dev").glob("nvidia*") if p.name.removeprefix("nvidia").isdigit()])
