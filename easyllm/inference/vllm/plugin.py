"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

MODELS = {
    "BaichuanForCausalLM": "BaichuanForCausalLM",
    "BaiChuanForCausalLM": "BaichuanForCausalLM",  # as Baichuan-7B spells it
    "QWenLMHeadModel": "QWenLMHeadModel",
}
"""What ``config.json`` names among its ``architectures``, and our class for it."""


def register() -> None:
    """Make Baichuan and the first Qwen known to vLLM and to transformers' Auto classes.

    May be called more than once. Nothing of a model is imported before one is served.
    """
    from vllm import ModelRegistry

    import easyllm.models.custom  # noqa: F401

    for architecture, name in MODELS.items():
        ModelRegistry.register_model(architecture, f"easyllm.inference.vllm.models:{name}")
