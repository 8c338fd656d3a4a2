"""Checks that a model's dimensions fit each other, the layout and the devices' memory. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from easyllm.spec.model import published_config, trainable
from easyllm.spec.problems import Problem, near
from easyllm.spec.roles import Family, LayerShape, ModelShape
from easyllm.spec.run import RunSpec

BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of a number by dtype."""


def shape_problems(run: RunSpec, family: Family, config: Mapping[str, Any]) -> Iterator[Problem]:
    """What the dimensions in ``config`` do not allow."""

    def at(key: str) -> str:
        return f"model.overrides.{key}" if key in run.model.overrides else f"model.config.{key}"

    if any(published_config.wrong(config)):  # reported with the keys
        return
    stated = config.get("model_type", family.model_type)
    if stated != family.model_type:
        yield Problem(
            at("model_type"), stated, f"model.family reads models of type {family.model_type}",
            f"give {family.model_type}, or the family of the other type", also=("model.family",),
        )  # fmt: skip
        return
    why, known = family.unusable(config)
    if why:
        path = not run.model.config
        yield Problem(
            "model.path" if path else "model.config.model_type" if known else "model.config",
            run.model.path if path else family.model_type if known else dict(config),
            f"its config.json has model_type {family.model_type}: {why}" if path else why,
            near(family.model_type, known)
            or ("give your own family in model.family._target_" if known else "fix its values"),
        )  # fmt: skip
        return
    try:
        shape = family.shape(config)
    except KeyError as error:
        yield Problem(at(str(error.args[0])), None, "must be given", f"give {at(error.args[0])}")
        return
    except (TypeError, ValueError, ZeroDivisionError) as error:
        yield Problem("model.config", dict(config), f"is not usable: {error}", "fix its values")
        return
    derived = not config.get("head_dim") and shape.head_dim == shape.hidden_size // shape.heads
    if derived and shape.hidden_size % shape.heads:
        yield Problem(
            at("num_attention_heads"), shape.heads,
            f"does not divide hidden_size, {shape.hidden_size}",
            f"give a divisor of {shape.hidden_size}", also=(at("hidden_size"),),
        )  # fmt: skip
    if shape.head_dim % 2 and not family.alibi(config):
        yield Problem(
            at("head_dim" if config.get("head_dim") else "hidden_size"),
            config.get("head_dim") or shape.hidden_size,
            f"gives each attention head {shape.head_dim} dimensions, but rotary positions need "
            "pairs of them",
            "give an even head_dim, or a hidden_size of as many for each head",
        )  # fmt: skip
    if shape.heads % shape.kv_heads:
        yield Problem(
            at("num_key_value_heads"), shape.kv_heads,
            f"does not divide the {shape.heads} attention heads",
            f"give a divisor of {shape.heads}",
        )  # fmt: skip
    canonical = run.export.layout == "canonical" and "export" in run.stages
    if canonical and (why := family.native_only(config)):
        yield Problem("export.layout", "canonical", why, "give export.layout=native")
    attentions = family.attentions(config)
    if attentions and run.model.attention not in attentions:
        yield Problem(
            "model.attention", run.model.attention,
            f"models of type {family.model_type} are trained with {' or '.join(attentions)}",
            f"give model.attention={attentions[0]}", also=("model.family",),
        )  # fmt: skip
    if run.training.loss == "linear_cross_entropy" and family.changes_logits(config):
        yield Problem(
            "training.loss", run.training.loss,
            f"a {family.model_type} model scales or caps the logits after its head",
            "give training.loss=cross_entropy", also=("model.family",),
        )  # fmt: skip
    stages = run.parallelism.stages
    if stages > 1 and (why := family.uncut(config)):
        yield Problem(
            "parallelism.pipeline_stages", stages,
            f"the layers of a {family.model_type} model cannot be divided: {why}",
            "give parallelism=zero", also=("model.family",),
        )  # fmt: skip
    if stages > shape.layers:
        yield Problem(
            "parallelism.pipeline_stages",
            stages,
            f"the model has only {shape.layers} layers",
            f"give at most {shape.layers}",
            also=("model.overrides.num_hidden_layers",),
        )
    if run.data.seq_len > shape.max_positions:
        yield Problem(
            "data.seq_len",
            run.data.seq_len,
            f"the model has {shape.max_positions} positions",
            f"give at most {shape.max_positions}",
            also=(at("max_position_embeddings"),),
        )
    yield from _memory(run, family, config, shape)


def _memory(
    run: RunSpec, family: Family, config: Mapping[str, Any], shape: ModelShape
) -> Iterator[Problem]:
    """Weights, gradients and optimizer states must fit; activations, which come in addition, are
    not counted."""
    limit = run.hardware.memory_gb
    if limit is None or "train" not in run.stages:
        return
    layers = family.param_specs(config)
    share = trainable.share(run, layers) if layers else 1.0
    need = state_bytes(run, shape, share, layers) / 1e9
    if need > limit:
        yield Problem(
            "hardware.memory_gb",
            limit,
            f"weights, gradients and optimizer states take {need:.1f} GB a device",
            "give more pipeline stages, more devices or a higher zero_stage",
            also=("parallelism.pipeline_stages", "parallelism.zero_stage", "model.dtype"),
        )


def state_bytes(
    run: RunSpec,
    shape: ModelShape,
    trained: float = 1.0,
    layers: Sequence[LayerShape] | None = None,
) -> float:
    """Bytes of weights, gradients and AdamW states on the device with the most of them; ``trained``
    is the share of the weights that is trained. Without ``layers`` each decoder layer has a gated
    feed-forward.

    In bfloat16 the optimizer keeps an fp32 copy of the weights and fp32 gradients.
    """
    layout = run.parallelism
    count = trainable.number
    whole = count(trainable.shapes(layers)) if layers else shape.parameters
    decoders = count(trainable.shapes(layer for layer in layers or () if layer.decoder))
    each = decoders / shape.layers if layers else shape.layer_parameters
    parameters = -(-shape.layers // layout.stages) * each + shape.embedding_parameters
    if layout.stages == 1:
        parameters = whole
    replicas = layout.replicas(run.hardware.ranks)
    optimizer, gradients, weights = (replicas if split else 1 for split in layout.state_shards)
    master = 4 if run.model.dtype == "bfloat16" else 0
    states, parts = layout.offloads
    if states:
        trained = 0.0
    return parameters * (
        (0 if parts else BYTES[run.model.dtype] / weights)
        + trained * (4 / gradients + (8 + master) / optimizer)
    )
