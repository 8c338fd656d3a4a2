"""Models as lm-eval runs them: by its own class for transformers, or by an engine of easyllm."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.data.tokenizers.portable import of_model
from easyllm.errors import UserError
from easyllm.inference.engine_protocol import Engine
from easyllm.inference.engines import Transformers
from easyllm.inference.validate_weights import check_weights
from easyllm.spec.model.attention import INSTEAD
from easyllm.spec.run import RunSpec


@contextmanager
def loaded(run: RunSpec, folder: Path) -> Iterator[Any]:
    """The model in ``folder``, by ``inference.engine``; its memory is released at the end.
    Raises UserError."""
    engine = run.inference.engine
    if not isinstance(engine, Transformers):
        from easyllm.evaluation.lm_eval.engine_model import EngineModel

        opened: Engine = engine.load(folder, run)
        try:
            with asyncio.Runner() as runner:  # an engine belongs to one event loop
                yield EngineModel(opened, runner, run.evaluation.batch_size, _arguments(run))
        finally:
            opened.close()
        return
    try:
        check_weights(folder)
        model = _transformers(run, folder)
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

    attention = INSTEAD.get(run.model.attention, run.model.attention)
    network: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, run.model.dtype), attn_implementation=attention
    )
    network = network.to(run.hardware.device).eval()
    return HFLM(
        network, tokenizer=of_model(folder), batch_size=run.evaluation.batch_size,
        chat_template_args=_arguments(run),
    )  # fmt: skip


def _arguments(run: RunSpec) -> dict[str, Any]:
    """The arguments that the chat template was trained with."""
    return dict(getattr(run.data.template, "arguments", {}))
