"""``+smoke=cpu``: any run with the same stages and kinds of parallelism, reduced to fit this
machine."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from easyllm.data.chat.templates import TokenizerTemplate
from easyllm.data.executors import components as engines
from easyllm.data.tokenizers.components import ByteLevelBPE
from easyllm.launchers.local import Local
from easyllm.models.families import Llama
from easyllm.models.source import local_config
from easyllm.spec.model import trainable
from easyllm.spec.roles import ModelShape, Parallelism
from easyllm.spec.run import HardwareSpec, ModelSpec, RunSpec, SmokeSpec


def shrink(run: RunSpec) -> RunSpec:
    """``run`` within the limits of ``run.smoke``, which is null in the result."""
    limits = run.smoke
    assert limits is not None
    layout, ranks = _layout(run, limits)
    model = _model(run, limits)
    steps = run.training.steps
    evaluate, checkpoint = run.training.evaluate, run.training.checkpoint
    return replace(
        run,
        smoke=None,
        name=f"{run.name}-smoke",
        model=model,
        data=replace(
            run.data,
            tokenizer=ByteLevelBPE(vocab_size=limits.vocab_size),
            template=TokenizerTemplate(),  # another may need tokens that are not in this vocabulary
            seq_len=min(run.data.seq_len, limits.seq_len),
            long_conversations="cut_at_turns",  # few would be left in such short rows
            partitions=min(run.data.partitions, 2),
            engine=engines.Local(),
            max_documents=min(run.data.max_documents or limits.documents, limits.documents),
        ),
        parallelism=layout,
        hardware=HardwareSpec(device="cpu", devices_per_node=ranks, launcher=Local()),
        training=replace(
            run.training,
            epochs=None,
            freeze=_freeze(run, model),
            check_engine=run.training.check_engine is not False,
            steps=limits.steps if steps is None else min(steps, limits.steps),
            evaluate=replace(evaluate, every=_at_most(evaluate.every, 2)),
            checkpoint=replace(checkpoint, every=_at_most(checkpoint.steps, 2) or checkpoint.every),
        ),
        inference=replace(
            run.inference,
            sampling=replace(
                run.inference.sampling,
                max_tokens=min(run.inference.sampling.max_tokens, limits.new_tokens),
            ),
        ),
    )


def _at_most(value: int | None, limit: int) -> int | None:
    return None if value is None else min(value, limit)


def _layout(run: RunSpec, limits: SmokeSpec) -> tuple[Parallelism, int]:
    """The layout with each degree within the limit, and the ranks it takes."""
    layout = run.parallelism
    stages = min(layout.stages, limits.max_degree)
    replicas = min(layout.replicas(run.hardware.ranks), limits.max_degree)
    rows = min(layout.global_batch_size, limits.global_batch_size)
    changes: dict[str, Any] = {
        "data_parallel": None,
        "micro_batch_size": 1,
        "global_batch_size": max(rows // replicas, 1) * replicas,
    }
    fields = {field.name for field in dataclasses.fields(layout)}
    if layout.stages > 1 and "pipeline_stages" in fields:
        changes["pipeline_stages"] = stages
    if "stage_boundaries" in fields:
        changes["stage_boundaries"] = ()  # patterns of layers that no longer exist
    return replace(layout, **changes), stages * replicas


def _freeze(run: RunSpec, model: ModelSpec) -> dict[str, str]:
    """The patterns that match something of the smaller ``model``, which has fewer layers."""
    layers = model.family.param_specs(model.config) if model.family else None
    names = trainable.shapes(layers or [])
    return {
        key: pattern
        for key, pattern in run.training.freeze.items()
        if layers is None or any(trainable.matches(pattern, name) for name in names)
    }


def _model(run: RunSpec, limits: SmokeSpec) -> ModelSpec:
    """A model of the same family and kind, within the limits, with random weights."""
    model = run.model
    family = model.family or Llama()
    published = model.config or (local_config(model.path) if model.path else None) or {}
    config = {**published, **model.overrides}
    try:
        large = family.shape(config)
    except KeyError:  # nothing is known yet about a hub id
        large = family.shape(ASSUMED | config)
    heads = min(large.heads, limits.heads)
    shape = ModelShape(
        layers=min(large.layers, limits.layers),
        hidden_size=limits.hidden_size // heads * heads,
        heads=heads,
        kv_heads=max(1, heads * large.kv_heads // large.heads),
        head_dim=limits.hidden_size // heads,
        intermediate_size=limits.intermediate_size,
        vocab_size=limits.vocab_size,
        max_positions=max(run.data.seq_len, limits.seq_len),
        tied=large.tied,
    )
    attention: Any = next(iter(family.attentions(config)), "sdpa")
    return replace(
        model, path=None, revision=None, init="random", dtype="float32", attention=attention,
        compile=False, family=family,
        config=family.shaped(config, shape), overrides={},
    )  # fmt: skip


ASSUMED = {
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
}
"""Dimensions that are assumed for a model whose configuration is not available; all of them are
then reduced."""
