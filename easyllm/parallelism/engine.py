"""The training engine: one interface to DeepSpeed for all layouts."""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from easyllm.errors import UserError
from easyllm.files import write_json
from easyllm.models.layers import (
    Assembly,
    LayerSpec,
    Unprojected,
    causal_loss,
    checkpoint_activations,
    stored_buffers,
    tensor_shapes,
)
from easyllm.models.weights import DTYPES, FIX, Weights, fill
from easyllm.parallelism.deepspeed_config import configuration, effective
from easyllm.parallelism.deepspeed_internals import (
    clipping,
    fragments,
    skip_nonfinite,
    whole_shape,
)
from easyllm.parallelism.fragments import Fragment
from easyllm.parallelism.timing import StepClock
from easyllm.parallelism.world import all_gather_object, quiet, share_cores
from easyllm.paths import RunPaths
from easyllm.printable import some_of
from easyllm.progress import progress
from easyllm.spec.roles import Parallelism
from easyllm.spec.run import RunSpec

Batch = tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""A micro-batch: token ids and positions ``(rows, tokens)``; labels of the same shape (-100
untrained), and the scale that turns its summed cross entropy into its part of the step's loss. A
position is a token's index in its document, 0 where a document begins."""


Observer = Callable[[torch.Tensor | Unprojected, torch.Tensor], None]
"""Takes the logits of a micro-batch, or the inputs of the head, and the labels."""


class TrainEngine(abc.ABC):
    """A model, its optimizer and their share on this rank.

    The loss of a step is the mean over its micro-batches and replicas of
    ``scale * summed cross entropy``.
    """

    data_rank: int
    """The number of the replica that this rank belongs to."""
    data_size: int
    """Number of replicas."""
    reads_data: bool
    """Whether this rank needs micro-batches; other ranks get none."""
    counts_data: bool
    """Whether this rank is the one of its replica that reports the number of trained tokens."""
    modules: dict[str, nn.Module]
    """The layers that this rank is responsible for, by the prefix of their parameters' names."""
    copies: dict[str, nn.Module]
    """Copies, kept equal, of layers that another rank is responsible for."""
    runtime: deepspeed.DeepSpeedEngine
    optimizer: torch.optim.Optimizer

    def __init__(
        self,
        run: RunSpec,
        layout: Parallelism,
        *,
        layers: Sequence[LayerSpec],
        assembly: Assembly,
        weights: Weights,
        device: torch.device,
    ):
        self.run, self.layout, self.layers, self.weights = run, layout, layers, weights
        self.assemble, self.balance = assembly.assemble, assembly.balance
        self.routed = torch.zeros((), device=device)
        """The sum over micro-batches of the loss over routers."""
        self.observe: Observer | None = None
        """Called with what the last layer gives for a micro-batch, and the labels."""
        self.device, self.dtype = device, DTYPES[run.model.dtype]
        self.accumulation = layout.accumulation(run.hardware.ranks)
        self.decoders = [spec.name for spec in layers if spec.decoder]
        self.modules, self.copies = {}, {}
        self.projects = run.training.loss == "cross_entropy"
        """Whether the head computes the logits; otherwise the loss does."""
        compiled = run.model.compile and self.projects
        self.loss: Callable[..., torch.Tensor] = (
            torch.compile(causal_loss) if compiled else causal_loss
        )
        self.clock = StepClock(device)
        self.clock.watch_communication()

    @abc.abstractmethod
    def train_batch(self, batches: Iterable[Batch]) -> float:
        """Make one optimizer step over ``accumulation`` micro-batches a replica. Returns this
        rank's part of the loss, which is the sum of all ranks' parts."""

    @abc.abstractmethod
    def evaluate(self, batches: Iterable[Batch], count: int) -> float:
        """The loss over ``count`` micro-batches a replica, without training."""

    @property
    @abc.abstractmethod
    def replica_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same layers in the other replicas."""

    def loss_of(
        self, output: Any, labels: torch.Tensor, scale: torch.Tensor | float
    ) -> torch.Tensor:
        """A micro-batch's part of the loss, from what the last layer gives; with ``balance`` this
        is a pair with the sums of all routers."""
        logits, sums = output if self.balance else (output, output)
        if self.observe is not None:
            self.observe(logits, labels)
        if self.balance is None:
            return self.loss(logits, labels, scale)
        loss = self.loss(logits, labels, scale)
        if not torch.is_grad_enabled():
            return loss  # of held-out rows the cross entropy is of interest
        routed = self.balance.loss(sums)
        self.routed += routed.detach()
        return loss + self.balance.coefficient * routed

    def outputs(self, batch: Batch, tokens: slice) -> torch.Tensor | None:
        """The logits ``(tokens, vocabulary)`` for some tokens of the first row of a micro-batch, or
        the inputs of the head where the loss computes it; None on ranks that do not hold the last
        layer. Every rank must call it."""
        found: list[torch.Tensor] = []

        def keep(logits: torch.Tensor | Unprojected, labels: torch.Tensor) -> None:
            values = logits if isinstance(logits, torch.Tensor) else logits[0]
            found.append(values[0, tokens].clone())

        self.observed([batch] if self.reads_data else [], 1, keep)
        return found[0] if found else None

    def observed(self, batches: Iterable[Batch], count: int, observer: Observer) -> None:
        """Compute ``count`` micro-batches a replica without training, and give what the last layer
        makes of each to ``observer``, on the ranks that hold that layer. Every rank must call
        it."""
        self.observe = observer
        try:
            self.evaluate(batches, count)
        finally:
            self.observe = None

    def router_metrics(self) -> list[float]:
        """This rank's part of the step's numbers about routers, to be summed over all ranks: the
        loss over them, and the choices by layer and expert. Empty without ``balance``."""
        if self.balance is None:
            return []
        routed = self.routed.item() / (self.accumulation * self.data_size)
        self.routed.zero_()
        counts = torch.zeros(len(self.decoders), self.balance.experts)
        for layer, chosen in self.choices().items():
            counts[self.decoders.index(layer)] = chosen.cpu()
            chosen.zero_()
        return [routed, *counts.flatten().tolist()]

    @abc.abstractmethod
    def choices(self) -> dict[str, torch.Tensor]:
        """How often this rank's micro-batches chose each expert, by layer."""

    @contextlib.contextmanager
    def gathered(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Within the block the parameters are whole on this rank; every rank must call it."""
        yield

    def sum_over_replicas(self, number: int) -> int:
        """The sum of a number over the replicas."""
        total = torch.tensor(number, device=self.device)
        with self.clock.phase("communication"):
            dist.all_reduce(total, group=self.replica_group)
            return int(total.item())

    def set_lr(self, lr: float) -> None:
        for group in self.runtime.optimizer.param_groups:
            group["lr"] = lr

    @property
    def grad_norm(self) -> float:
        """Norm of the last step's gradient over all parameters, before clipping; not finite
        where no update was made."""
        norm = float(self.runtime.get_global_grad_norm())
        return norm if norm >= 0 else math.inf

    def parameters(self, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of ``modules`` by their names in the whole model."""
        for layer, module in modules.items():
            for path, parameter in module.named_parameters():
                yield f"{layer}.{path}", parameter

    def tensors(self, modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters of ``modules``, and the buffers that files hold, by their names in the
        whole model."""
        yield from self.parameters(modules)
        for layer, module in modules.items():
            for path, buffer in stored_buffers(module).items():
                yield f"{layer}.{path}", buffer

    def fragments(self) -> Iterator[Fragment]:
        """The fragments of parameters that this rank's optimizer holds."""
        return fragments(self.runtime, self.parameters({**self.modules, **self.copies}))

    def own_fragments(self) -> Iterator[Fragment]:
        """The fragments that this rank is responsible for; each element of the model belongs to
        exactly one rank."""
        found = fragments(self.runtime, self.parameters(self.modules))
        if any(self.layout.state_shards):
            return found
        # every replica holds all of it
        return islice(found, self.data_rank, None, self.data_size)

    def check_weights(self, own: Iterable[LayerSpec]) -> None:
        """Raise UserError on every rank if any cannot read the weights of its ``own`` layers, or if
        the files hold tensors that belong to no layer."""
        model = tensor_shapes(self.layers)
        shared = {f"{s.name}.weight": f"{s.tied_to}.weight" for s in self.layers if s.tied_to}
        found = self.weights.problems(tensor_shapes(own), model, shared)
        messages = list(dict.fromkeys(chain.from_iterable(all_gather_object(found))))
        if messages:
            raise UserError(f"model.path: {some_of(messages, sep='; ')}; {FIX}")

    def loading(self, layers: int) -> tqdm[Any]:
        """Show a progress bar over the layers that ``build`` makes within the block."""
        self.loaded = progress("load weights", layers, "layer", visible=dist.get_rank() == 0)
        return self.loaded

    def build(self, spec: LayerSpec) -> nn.Module:
        """A layer of the model, filled with its weights."""
        self.loaded.update()
        module = fill(spec.trained(), spec.name, self.weights, self.dtype, self.device)
        if spec.decoder and self.layout.recomputes(self.decoders.index(spec.name)):
            checkpoint_activations(module)
        if spec.decoder and self.run.model.compile:
            module.compile()
        return module

    def initialize(self, model: nn.Module) -> deepspeed.DeepSpeedEngine:
        """DeepSpeed's engine around ``model``."""
        if any(self.layout.offloads):
            share_cores()  # the CPU computes the updates
        self.optimizer = optimizer = self.run.training.optimizer.build(parameter_groups(model))
        clip = None
        if not any(self.layout.state_shards):
            clip = clipping(optimizer, self.run.training.gradient_clipping, self._norm_group())
        with quiet():
            runtime, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=self.config(), dist_init_required=False
            )
        skip_nonfinite(optimizer, runtime, clip)
        if dist.get_rank() == 0:
            write_json(RunPaths(self.run).deepspeed, effective(runtime._config))
        return runtime

    def _norm_group(self) -> dist.ProcessGroup | None:
        """The ranks over which a gradient is split; None where each holds all of it."""
        return None

    def config(self) -> dict[str, Any]:
        """DeepSpeed's configuration."""
        return configuration(self.run, self.layout)


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """The parameters to train, with weight decay (matrices) and without (biases, norms)."""
    parameters = [p for p in model.parameters() if p.requires_grad]

    def dimensions(parameter: nn.Parameter) -> int:
        return len(whole_shape(parameter))

    groups = [
        {"params": [p for p in parameters if dimensions(p) >= 2], "decay": True},
        {"params": [p for p in parameters if dimensions(p) < 2], "decay": False},
    ]
    return [group for group in groups if group["params"]]
