"""The engines that generate text and are shipped with easyllm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from easyllm.inference.engine_protocol import Engine
from easyllm.spec.problems import Problem
from easyllm.spec.roles import InferenceEngine
from easyllm.spec.run import RunSpec
from easyllm.spec.types import Count, Fraction, PositiveFloat


@dataclass(frozen=True, kw_only=True)
class Transformers(InferenceEngine):
    """Transformers' own model classes and continuous batching, on one device."""

    separate_api_process: ClassVar[bool] = True

    max_batch_tokens: Count = 512
    """Most tokens of one forward pass, mainly those of prompts."""
    kv_cache_gb: PositiveFloat | None = None
    """Memory for keys and values, in 10^9 bytes; null takes what ``inference.batch_size``
    answers of full length need, 2 at most, on a CPU, and what is free on a GPU."""

    def load(self, model: Path, run: RunSpec) -> Engine:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.hf.engine import HFEngine

        return HFEngine(model, run, self)


@dataclass(frozen=True, kw_only=True)
class VLLM(InferenceEngine):
    """vLLM, in separate processes. Field names are those of vLLM."""

    requires: ClassVar[Mapping[str, str]] = {"vllm": "vllm"}

    tensor_parallel_size: Count = 1
    """GPUs that share each layer."""
    pipeline_parallel_size: Count = 1
    """Groups of GPUs among which the layers are divided."""
    max_model_len: Count | None = None
    """Tokens of prompt and answer together; null takes the model's."""
    max_num_batched_tokens: Count | None = None
    """Most tokens of one forward pass."""
    gpu_memory_utilization: Fraction = 0.9
    """Share of each GPU's memory for weights, keys and values."""
    kv_cache_gb: Count = 1
    """Memory for keys and values on a CPU, in 2^30 bytes."""
    enforce_eager: bool = False
    """Run without compiling the model or capturing CUDA graphs."""
    enable_prefix_caching: bool = True
    """Reuse keys and values of prompts with the same beginning."""
    quantization: str | None = None
    """How weights are quantized; null reads it from the model."""

    def problems(self, key: str, run: RunSpec) -> Iterator[Problem]:
        ranks = self.tensor_parallel_size * self.pipeline_parallel_size
        if run.hardware.device == "cuda" and ranks > run.hardware.ranks:
            yield Problem(
                f"{key}.tensor_parallel_size",
                self.tensor_parallel_size,
                f"with pipeline_parallel_size={self.pipeline_parallel_size} this takes {ranks} "
                f"GPUs, and the hardware has {run.hardware.ranks}",
                "give a smaller one, or other hardware",
                also=(f"{key}.pipeline_parallel_size", "hardware.devices_per_node"),
            )

    def load(self, model: Path, run: RunSpec) -> Engine:
        """Load ``model`` as ``run.model.dtype`` onto ``run.hardware.device``."""
        from easyllm.inference.vllm.engine import VLLMEngine

        return VLLMEngine(model, run, self)
