"""``+smoke=cpu``: any run, the same stages and kinds of parallelism, shrunk to this machine."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

from easyllm.data import engines
from easyllm.data.templates import TokenizerTemplate
from easyllm.data.tokenizers import ByteLevelBPE
from easyllm.launchers.local import Local
from easyllm.models.families import Llama
from easyllm.models.source import local_config
from easyllm.spec.problems import Problem, SpecError
from easyllm.spec.roles import Parallelism
from easyllm.spec.run import HardwareSpec, ModelSpec, RunSpec, SmokeSpec


def shrink(run: RunSpec) -> RunSpec:
    """``run`` within the limits of ``run.smoke``, which is null in the result.

    Raises SpecError for a family that cannot be built from a configuration of its own yet.
    """
    limits = run.smoke
    assert limits is not None
    layout, ranks = _layout(run, limits)
    steps = run.training.steps
    evaluate, checkpoint = run.training.evaluate, run.training.checkpoint
    return replace(
        run,
        smoke=None,
        name=f"{run.name}-smoke",
        model=_model(run, limits),
        data=replace(
            run.data,
            tokenizer=ByteLevelBPE(vocab_size=limits.vocab_size),
            template=TokenizerTemplate(),  # another may need tokens that this vocabulary lacks
            seq_len=min(run.data.seq_len, limits.seq_len),
            long_conversations="cut_at_turns",  # in such short rows few would be left
            partitions=min(run.data.partitions, 2),
            engine=engines.Local(),
            limit=min(run.data.limit or limits.documents, limits.documents),
        ),
        parallelism=layout,
        hardware=HardwareSpec(device="cpu", devices_per_node=ranks, launcher=Local()),
        training=replace(
            run.training,
            epochs=None,
            steps=limits.steps if steps is None else min(steps, limits.steps),
            evaluate=replace(evaluate, every=_at_most(evaluate.every, 2)),
            checkpoint=replace(checkpoint, every=_at_most(checkpoint.every, 2)),
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
    if layout.stages > 1 and "pipeline_stages" in {f.name for f in dataclasses.fields(layout)}:
        changes["pipeline_stages"] = stages
    return replace(layout, **changes), stages * replicas


def _model(run: RunSpec, limits: SmokeSpec) -> ModelSpec:
    model = run.model
    family = model.family or Llama()
    if not isinstance(family, Llama):
        raise SpecError(
            [
                Problem(
                    "smoke", "cpu", f"models of type {family.model_type} cannot be shrunk yet",
                    "choose a recipe of the Llama family, e.g. +recipe=llama13b_pipe",
                )
            ]
        )  # fmt: skip
    published = model.config or (local_config(model.path) if model.path else None) or {}
    config = {**published, **model.overrides}
    heads = min(int(config.get("num_attention_heads", limits.heads)), limits.heads)
    groups = config.get("num_attention_heads", 1) // (config.get("num_key_value_heads") or 1)
    small = {
        "model_type": family.model_type,
        "vocab_size": limits.vocab_size,
        "hidden_size": limits.hidden_size // heads * heads,
        "intermediate_size": limits.intermediate_size,
        "num_hidden_layers": min(
            int(config.get("num_hidden_layers", limits.layers)), limits.layers
        ),
        "num_attention_heads": heads,
        "num_key_value_heads": max(1, heads // groups) if groups else heads,
        "max_position_embeddings": max(run.data.seq_len, limits.seq_len),
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }
    return replace(
        model, path=None, init="random", dtype="float32", attention="sdpa", family=Llama(),
        config=small, overrides={},
    )  # fmt: skip
