"""The model of a checkpoint, computed as training computes it, in one process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from easyllm.models.adapted import adapted
from easyllm.models.attention.documents import Documents
from easyllm.models.config import family_of, hf_config
from easyllm.models.layers import causal_loss
from easyllm.models.weights import DTYPES, filled
from easyllm.spec.run import RunSpec
from easyllm.training.checkpointing.checkpoints import Checkpoint
from easyllm.training.checkpointing.resuming import starting_weights


class TrainedModel:
    """The layers of a checkpoint and, beside them, the adapter that was trained, not merged."""

    def __init__(self, run: RunSpec, checkpoint: Checkpoint):
        config = hf_config(run)
        family = family_of(run, config.model_type)
        attention, dtype = run.model.attention, DTYPES[run.model.dtype]
        self.device = torch.device(run.hardware.device)
        specs = adapted(run, family.layers(config, attention))
        weights = starting_weights(run, config, family, checkpoint)
        layers = filled(specs, weights, dtype, self.device)
        for layer in layers.values():
            layer.eval()
        # a shared one is counted once
        self.parameters = {p for layer in layers.values() for p in layer.parameters()}
        assembly = family.assembly(config, attention, None)
        self.forward: Any = assembly.assemble(specs, list(layers.values()))

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
