#!/usr/bin/env bash
# transformers 5.19: a parameter that a model's constructor freezes is trainable after
# from_pretrained.
#
# Ernie 4.5 MoE declares the correction bias of its routers, which decides which experts are chosen,
# with requires_grad=False: it is to be updated by the load of the experts, not by gradients. A model
# made from a configuration keeps that. The same model loaded by from_pretrained does not, and says
# nothing. The bias has no gradient of its own, but every optimizer that is given
# model.parameters() takes it, and engines that fill in zeros for missing gradients (DeepSpeed's
# ZeRO) let weight decay shrink it, so that fine-tuning changes the choice of experts.
#
# Whom it hurts: people who fine-tune such models with ZeRO, who count trainable parameters, or who
# freeze by "what the model itself has frozen".
# Guessed before it was run: requires_grad=False would survive loading.
# Exits with another status than 0 if the behaviour changes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.19.0
cat > "$folder/try.py" <<'PY'
import sys
import tempfile

import torch
import transformers
from transformers import AutoModelForCausalLM, Ernie4_5_MoeConfig

print("torch", torch.__version__, "transformers", transformers.__version__)
torch.manual_seed(0)
config = Ernie4_5_MoeConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=16,
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, moe_num_experts=4, moe_k=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=2,
)


def frozen(model):
    return [name for name, p in model.named_parameters() if not p.requires_grad]


made = AutoModelForCausalLM.from_config(config)
for name, parameter in made.named_parameters():
    if name in frozen(made):
        parameter.data.normal_()
with tempfile.TemporaryDirectory() as folder:
    made.save_pretrained(folder)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
print("frozen as made:  ", frozen(made))
print("frozen as loaded:", frozen(loaded))

name = frozen(made)[0]
before = loaded.get_parameter(name).detach().clone()
optimizer = torch.optim.AdamW(loaded.parameters(), lr=0.1, weight_decay=0.1)
for _ in range(10):
    optimizer.zero_grad()
    ids = torch.randint(3, 64, (2, 16))
    loaded(input_ids=ids, labels=ids).loss.backward()
    for parameter in loaded.parameters():
        if parameter.requires_grad and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)  # as ZeRO does
    optimizer.step()
shrunk = (loaded.get_parameter(name).norm() / before.norm()).item()
print(f"{name} after ten steps has {shrunk:.3f} of its size")
sys.exit(not (frozen(made) and not frozen(loaded) and shrunk < 0.95))
PY
"$folder/venv/bin/python" "$folder/try.py" 2>/dev/null
# Output seen (CPU):
# torch 2.13.0+cpu transformers 5.19.0
# frozen as made:   ['model.layers.1.mlp.gate.moe_statics.e_score_correction_bias']
# frozen as loaded: []
# model.layers.1.mlp.gate.moe_statics.e_score_correction_bias after ten steps has 0.904 of its size
