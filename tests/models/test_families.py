"""Families: what their configurations may hold, their dimensions, and what is refused."""

from __future__ import annotations

import pytest
import yaml

from easyllm.cli.library import shipped_folder
from easyllm.models.decoders.family import Decoder
from easyllm.models.families import Llama, family_named
from easyllm.models.layers import param_specs, tensor_shapes
from easyllm.spec.roles import ModelShape
from tests.models.small import SMALL
from tests.support import LLAMA


def test_families_are_found_by_model_type() -> None:
    for model_type in ("llama", "mistral", "qwen2", "qwen3", "qwen", "baichuan"):
        family = family_named(model_type)
        assert family.model_type == model_type and not isinstance(family, Decoder)
    assert family_named("qwen3_moe") == Decoder(type="qwen3_moe")


def test_llama_knows_every_key_that_transformers_reads() -> None:
    from transformers import LlamaConfig, PretrainedConfig

    general = set(PretrainedConfig().to_dict())
    own = set(LlamaConfig().to_dict()) - general
    assert own <= Llama().config_keys
    assert set(LLAMA) <= Llama().config_keys


@pytest.mark.parametrize("tied", [True, False])
def test_the_shape_counts_the_parameters_that_transformers_makes(tied: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {**LLAMA, "tie_word_embeddings": tied}
    made = LlamaForCausalLM(LlamaConfig(**config)).num_parameters()
    assert Llama().shape(config).parameters == made


@pytest.mark.parametrize(
    ("model_type", "config", "billions"),
    [
        (
            "qwen",
            "{hidden_size: 4096, intermediate_size: 22016, num_hidden_layers: 32, vocab_size: "
            "151936, num_attention_heads: 32, max_position_embeddings: 32768}",
            7.7,
        ),
        (
            "baichuan",
            "{hidden_size: 5120, intermediate_size: 13696, num_hidden_layers: 40, vocab_size: "
            "64000, num_attention_heads: 40, model_max_length: 4096}",
            13.3,
        ),
        (
            "qwen2",
            "{hidden_size: 3584, intermediate_size: 18944, num_hidden_layers: 28, vocab_size: "
            "152064, num_attention_heads: 28, num_key_value_heads: 4, "
            "max_position_embeddings: 131072}",
            7.6,
        ),
    ],
)
def test_published_dimensions_give_published_sizes(
    model_type: str, config: str, billions: float
) -> None:
    family = family_named(model_type)
    values = yaml.safe_load(config)
    assert set(values) <= family.config_keys
    assert family.shape(values).parameters / 1e9 == pytest.approx(billions, abs=0.06)


GROUPS = sorted(
    file.stem for file in (shipped_folder() / "model").glob("*.yaml")
    if file.stem != "from_path" and "decoders.family" not in file.read_text("utf-8")
)  # fmt: skip


@pytest.mark.parametrize("group", GROUPS)
def test_a_smaller_configuration_keeps_what_tells_the_model(group: str) -> None:
    from transformers import AutoConfig

    import easyllm.models.custom  # noqa: F401

    config = yaml.safe_load((shipped_folder() / "model" / f"{group}.yaml").read_text())["config"]
    family = family_named(config["model_type"])
    small = ModelShape(
        layers=3, hidden_size=64, heads=4, kv_heads=4,
        head_dim=16, intermediate_size=96, vocab_size=512, max_positions=128,
        tied=family.shape(config).tied,
    )  # fmt: skip
    made = family.shaped(config, small)
    assert made.keys() <= family.config_keys
    assert family.shape(made) == small
    for key in ("rope_scaling", "rope_theta", "rms_norm_eps", "layer_norm_epsilon"):
        assert made.get(key) == config.get(key)
    built = AutoConfig.for_model(**made)
    if config["model_type"] == "baichuan":
        assert built.alibi is ("13b" in group) and built.norm_head is ("baichuan2" in group)
    layers = family.layers(built, "sdpa")
    assert sum(spec.decoder for spec in layers) == 3
    parameters = sum(shape.numel() for shape in tensor_shapes(layers).values())
    # biases, and what Qwen3 normalises its queries with, are not counted
    assert parameters == pytest.approx(small.parameters, rel=0.01)


BIASED = {**SMALL["llama"], "attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("name", [*SMALL, "biased", "qwen3_biased"])
def test_a_family_knows_its_layers_without_building_them(name: str) -> None:
    """In order, with the names and shapes of all their parameters."""
    from transformers import AutoConfig

    import easyllm.models.custom  # noqa: F401

    own = {"biased": BIASED, "qwen3_biased": {**SMALL["qwen3"], "attention_bias": True}}
    config = own.get(name) or SMALL[name]
    family = family_named(config["model_type"])
    values = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoConfig.for_model(config["model_type"], **values)
    assert family.param_specs(config) == param_specs(family.layers(made, "sdpa"))


@pytest.mark.parametrize("name", SMALL)
def test_what_decays_is_what_transformers_trainer_decays(name: str) -> None:
    """Norms and biases do not, by the type of their modules; embeddings and the head do."""
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM, Trainer

    import easyllm.models.custom  # noqa: F401
    from easyllm.parallelism.engine import parameter_groups

    config = SMALL[name]
    values = {key: value for key, value in config.items() if key != "model_type"}
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    theirs = set(Trainer.get_decay_parameter_names(None, made))  # type: ignore[arg-type]
    family = family_named(config["model_type"])
    layers = family.layers(made.config, "sdpa")
    modules = nn.ModuleDict({spec.name.replace(".", "/"): spec.build() for spec in layers
                             if spec.tied_to is None})  # fmt: skip
    names = {p: n.replace("/", ".") for n, p in modules.named_parameters()}
    groups = {group["decay"]: group["params"] for group in parameter_groups(modules)}
    assert {names[p] for p in groups[True]} == theirs - {
        s.name + ".weight" for s in layers if s.tied_to
    }
    assert any("embed_tokens" in names[p] for p in groups[True])
    assert all("norm" in names[p] or names[p].endswith("bias") for p in groups[False])
