"""Adapters, which are trained beside a model that is not changed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from easyllm.spec.model.trainable import REGEX, matches
from easyllm.spec.roles import Adapter
from easyllm.spec.types import Count, Fraction, PositiveFloat

if TYPE_CHECKING:
    import torch

ALL = "all-linear"
"""The pattern that chooses every linear layer of the decoder layers."""


@dataclass(frozen=True, kw_only=True)
class LoRA(Adapter):
    """Low-rank adaptation (Hu et al., 2021), by the layers of peft: ``W x + s B A x``."""

    r: Count = 16
    """Rank of the matrices A and B."""
    alpha: PositiveFloat = 32.0
    """The adapter's output is multiplied by ``alpha / r``."""
    rslora: bool = False
    """Multiply by ``alpha / sqrt(r)`` instead (Kalajdzievski, 2023)."""
    dropout: Fraction = 0.0
    """Share of the adapter's inputs that are dropped in training. The dropped inputs depend on the
    layout."""
    targets: tuple[str, ...] = (ALL,)
    """Linear layers of the decoder layers that get an adapter: ``all-linear`` for all, the ends of
    names, such as ``q_proj``, globs such as ``layers.1?.mlp.*``, or regular expressions after
    ``re:``, which must match whole names."""

    requires: ClassVar[Mapping[str, str]] = {"peft": "lora"}
    everywhere = (ALL,)

    @property
    def patterns(self) -> tuple[str, ...]:
        return self.targets

    def chosen(self, linears: Iterable[str], patterns: Sequence[str] = ()) -> list[str]:
        def chooses(pattern: str, name: str) -> bool:
            if pattern == ALL or matches(pattern, name):
                return True
            return not pattern.startswith(REGEX) and matches(f"*.{pattern}", name)

        wanted = patterns or self.targets
        return [name for name in linears if any(chooses(p, name) for p in wanted)]

    def parameters(self, linear: str, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
        rows, columns = shape
        first, second = _pair(linear)
        return {first: (self.r, columns), second: (rows, self.r)}

    def attach(self, layer: Any, targets: Sequence[str]) -> None:
        from peft import inject_adapter_in_model
        from torch import nn

        # peft would read a configuration that it finds on the layer, but it is the whole model's
        holder = nn.Module()
        holder.layer = layer
        config = self._config([f"layer.{target}" for target in targets])
        inject_adapter_in_model(config, holder, low_cpu_mem_usage=True)

    def base_name(self, parameter: str) -> str | None:
        return None if ".lora_" in parameter else parameter.replace(".base_layer.", ".")

    def fresh(
        self, parameter: str, shape: Sequence[int], generator: torch.Generator
    ) -> torch.Tensor:
        import torch

        if ".lora_B." in parameter:
            return torch.zeros(*shape)
        bound = 1 / math.sqrt(shape[1])  # as nn.Linear, and so peft, draws it
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)

    def delta(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        first, second = (
            next(part.float() for name, part in parts.items() if f".lora_{letter}." in name)
            for letter in "AB"
        )
        return (second @ first) * (self.alpha / (math.sqrt(self.r) if self.rslora else self.r))

    def write(
        self,
        folder: Path,
        base: str,
        linears: Sequence[str],
        parts: Mapping[str, torch.Tensor],
        revision: str | None = None,
    ) -> None:
        from safetensors.torch import save_file

        chosen = self.chosen(linears)
        ends = {name.rpartition(".")[2] for name in chosen}
        everywhere = {name for name in linears if name.rpartition(".")[2] in ends} == set(chosen)
        config = self._config(sorted(ends) if everywhere else chosen, base, revision)
        config.save_pretrained(str(folder))
        written = folder / "adapter_config.json"
        values = json.loads(written.read_text("utf-8"))
        # peft writes a set in any order
        values["target_modules"] = sorted(values["target_modules"])
        written.write_text(json.dumps(values, indent=2) + "\n", "utf-8")
        tensors = {
            f"base_model.model.{name.replace('.default.', '.')}": part.contiguous()
            for name, part in parts.items()
        }
        file = folder / "adapter_model.safetensors"
        save_file(tensors, file, metadata={"format": "pt"})
        file.chmod(0o644)

    def _config(
        self, targets: Sequence[str], base: str | None = None, revision: str | None = None
    ) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # a number; whole ones are usual
            lora_dropout=self.dropout,
            use_rslora=self.rslora,
            target_modules=list(targets),
            base_model_name_or_path=base,
            revision=revision,
            task_type="CAUSAL_LM" if base else None,
            inference_mode=base is not None,
        )


def _pair(linear: str) -> tuple[str, str]:
    """The names of A and B beside a linear layer."""
    return f"{linear}.lora_A.default.weight", f"{linear}.lora_B.default.weight"
