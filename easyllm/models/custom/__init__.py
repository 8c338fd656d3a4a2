"""Models that transformers does not have, registered with its Auto classes when imported.

An exported model carries the file that its class stands in and those that it imports from this
folder, relatively; they may import nothing else of this package.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from easyllm.models.custom.modeling_baichuan import BaichuanConfig, BaichuanForCausalLM
from easyllm.models.custom.modeling_qwen import QWenConfig, QWenLMHeadModel

for _model in (BaichuanForCausalLM, QWenLMHeadModel):
    AutoConfig.register(_model.config_class.model_type, _model.config_class, exist_ok=True)
    AutoModelForCausalLM.register(_model.config_class, _model, exist_ok=True)

__all__ = ["BaichuanConfig", "BaichuanForCausalLM", "QWenConfig", "QWenLMHeadModel"]
