"""The model of a checkpoint, computed as training computes it, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from easyllm.models.adapted import adapted
from easyllm.models.attention.documents import Documents
from easyllm.models.config import family_of, hf_config
from easyllm.models.layers import LayerSpec, causal_loss
from easyllm.models.weights import DTYPES, fill
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.checkpointing.resuming import starting_weights

ON_CUDA = ("varlen", "flex_attention", "flash_attention_2")
"""Attention that trains on CUDA only."""


class TrainedModel:
    """The layers of a checkpoint and, beside them, the adapter that was trained, not merged."""

    def __init__(self, run: RunSpec, checkpoint: Checkpoint):
        config = hf_config(run)
        family = family_of(run, config.model_type)
        attention = run.model.attention
        if attention in ON_CUDA and run.hardware.device == "cpu":
            attention = "sdpa"
        self.device = torch.device(run.hardware.device)
        dtype = DTYPES[run.model.dtype]
        weights = starting_weights(run, config, family, checkpoint)
        specs: list[LayerSpec] = adapted(run, family.layers(config, attention))
        built: dict[str, nn.Module] = {}
        for spec in specs:
            module: Any = spec.trained()
            if spec.tied_to is None:
                fill(module, spec.name, weights, dtype, self.device)
            else:
                module.weight = built[spec.tied_to].weight
            built[spec.name] = module.eval()
        # a shared one is counted once
        self.parameters = {p for module in built.values() for p in module.parameters()}
        assembly = family.assembly(config, attention, None)
        self.forward: Any = assembly.assemble(specs, [built[spec.name] for spec in specs])

    def grad_norm(self, ids: Sequence[int]) -> float:
        """The norm of the gradient of a document's mean loss, over all parameters."""
        row = torch.tensor([list(ids)], device=self.device)
        positions = torch.arange(len(ids)).unsqueeze(0)
        logits = self.forward(row, Documents.of(positions.to(self.device), positions))
        causal_loss(logits, row, 1 / (len(ids) - 1)).backward()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        return float(torch.stack([g.double().square().sum() for g in gradients]).sum().sqrt())

    @torch.no_grad()
    def logprobs(self, documents: Sequence[Sequence[int]]) -> list[list[float]]:
        """The log-probabilities of each document's tokens after the first, all documents in one
        row."""
        lengths = [len(ids) for ids in documents]
        row = torch.tensor([[token for ids in documents for token in ids]], device=self.device)
        positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
        logits = self.forward(row, Documents.of(positions.to(self.device), positions))
        found = []
        for own, ids in zip(logits[0].split(lengths), row[0].split(lengths), strict=True):
            logprobs = own[:-1].float().log_softmax(dim=-1)
            found.append(logprobs.gather(1, ids[1:, None]).squeeze(1).tolist())
        return found
