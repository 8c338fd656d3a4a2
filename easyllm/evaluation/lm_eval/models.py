"""Models as lm-eval runs them: by its own classes for transformers and vLLM."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.data.tokenizers.portable import of_model
from easyllm.errors import UserError
from easyllm.inference.engines import VLLM
from easyllm.inference.validate_weights import check_weights
from easyllm.spec.run import RunSpec

EXACT = ("sdpa", "eager", "flash_attention_2")


@contextmanager
def loaded(run: RunSpec, folder: Path) -> Iterator[Any]:
    """The model in ``folder``, by ``inference.engine``; its memory is released at the end.
    Raises UserError."""
    try:
        check_weights(folder)
        model = (_vllm if isinstance(run.inference.engine, VLLM) else _transformers)(run, folder)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"{folder}: this model cannot be loaded: {error}") from error
    try:
        yield model
    finally:
        del model
        gc.collect()


def _transformers(run: RunSpec, folder: Path) -> Any:
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM

    attention = run.model.attention if run.model.attention in EXACT else "sdpa"
    network: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, run.model.dtype), attn_implementation=attention
    )
    network = network.to(run.hardware.device).eval()
    return HFLM(
        network, tokenizer=of_model(folder), batch_size=run.evaluation.batch_size,
        chat_template_args=_arguments(run),
    )  # fmt: skip


def _vllm(run: RunSpec, folder: Path) -> Any:
    from lm_eval.models.vllm_causallms import VLLM as LMEvalVLLM

    fields = run.inference.engine
    assert isinstance(fields, VLLM)
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if run.hardware.device == "cpu":
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(fields.kv_cache_gb)
    return LMEvalVLLM(
        str(folder), dtype=run.model.dtype, seed=run.seed, batch_size="auto",
        tensor_parallel_size=fields.tensor_parallel_size, max_model_len=fields.max_model_len,
        quantization=fields.quantization, gpu_memory_utilization=fields.gpu_memory_utilization,
        enforce_eager=fields.enforce_eager, max_num_seqs=run.inference.batch_size,
        chat_template_args=_arguments(run),
    )  # fmt: skip


def _arguments(run: RunSpec) -> dict[str, Any]:
    """The arguments that the chat template was trained with."""
    return dict(getattr(run.data.template, "arguments", {}))
