"""The plugin that vLLM calls in each process, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

MODELS = {
    "BaichuanForCausalLM": "BaichuanForCausalLM",
    "BaiChuanForCausalLM": "BaichuanForCausalLM",  # as Baichuan-7B spells it
    "QWenLMHeadModel": "QWenLMHeadModel",
}
"""Names among the ``architectures`` of ``config.json``, and easyllm's class for each."""


def register() -> None:
    """Make Baichuan and the first Qwen known to vLLM and to transformers' Auto classes.

    May be called more than once. A model's code is imported only when the model is served.
    """
    from vllm import ModelRegistry

    import easyllm.models.custom  # noqa: F401

    for architecture, name in MODELS.items():
        ModelRegistry.register_model(architecture, f"easyllm.inference.vllm.models:{name}")
