"""The state at the beginning of training, the same on every rank: the model as layers, its sizes,
and where the run resumes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from easyllm.data.dataset.rows import Rows
from easyllm.models import tokenizer_files
from easyllm.models.adapted import adapted
from easyllm.models.config import family_of, hf_config
from easyllm.models.layers import Assembly, LayerSpec, param_specs
from easyllm.models.weight_mapping import RowMapping
from easyllm.models.weights import Weights
from easyllm.parallelism.engine import TrainEngine
from easyllm.spec.model import trainable
from easyllm.spec.roles import Family
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing import optimizer_state
from easyllm.training.checkpointing.resuming import (
    ResumePoint,
    resume_point,
    starting_weights,
)
from easyllm.training.checkpointing.saving import Saver


@dataclass(frozen=True)
class Setup:
    run: RunSpec
    rows: Rows
    config: PretrainedConfig
    family: Family
    layers: list[LayerSpec]
    assembly: Assembly
    parameters: int
    trained_parameters: int
    active: float
    """The share of the parameters that a token uses."""
    total_steps: int
    resume: ResumePoint

    @classmethod
    def of(cls, run: RunSpec, rows: Rows) -> Setup:
        """Raises UserError where the run cannot resume from its checkpoints."""
        config = hf_config(run)
        tokenizer_files.fit(run, config)
        family = family_of(run, config.model_type)
        layers = family.layers(config, run.model.attention)
        changed, shapes = adapted(run, layers), param_specs(layers)
        total = total_steps(run, rows)
        return cls(
            run, rows, config, family, changed,
            family.assembly(config, run.model.attention, run.training.router_aux_loss),
            parameters=trainable.number(trainable.shapes(shapes)),
            trained_parameters=trainable.number(trainable.trained(run, shapes)),
            active=family.active(config.to_dict()),
            total_steps=total,
            resume=resume_point(run, rows, total),
        )  # fmt: skip

    @property
    def done(self) -> bool:
        """Whether the newest checkpoint already is the last one."""
        resume = self.resume
        whole = resume.checkpoint is not None and not resume.weights_only
        return whole and resume.step == self.total_steps

    def engine(self, device: torch.device) -> tuple[TrainEngine, Weights]:
        """The model and its optimizer as the run resumes them, on all ranks, and its weights, which
        record how much of them was read."""
        found = self.resume.checkpoint
        weights = starting_weights(self.run, self.config, self.family, found)
        engine = self.run.parallelism.engine(
            self.run, layers=self.layers, assembly=self.assembly, weights=weights, device=device
        )
        if found and self.resume.step:
            optimizer_state.load(engine, found.path / optimizer_state.FOLDER)
        return engine, weights

    def saver(self) -> Saver:
        manifest = self.rows.manifest
        return Saver(
            self.run, self.config, self.family.names(self.config) or RowMapping(),
            bool(manifest["conversations"]), manifest["template_arguments"],
        )  # fmt: skip


def total_steps(run: RunSpec, rows: Rows) -> int:
    """Optimizer steps of the whole run; the last step of an epoch may reach into the next."""
    training = run.training
    if training.epochs is None:
        return training.steps or 0
    return math.ceil(training.epochs * rows.per_epoch / run.parallelism.global_batch_size)
