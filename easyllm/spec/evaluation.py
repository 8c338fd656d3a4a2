"""The spec of the evaluation of a model, and of the comparison of what was trained with what is
served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from easyllm.spec.fields import empty
from easyllm.spec.types import Count, NonNegativeInt, Place, Range


@dataclass(frozen=True, kw_only=True)
class VerifySpec:
    documents: Count = 4
    """Documents and conversations that are followed, of each source and of the held-out ones."""
    max_tokens: Annotated[int, Range(low=2, high=1 << 20)] = 256
    """Most tokens of each that are given to the model."""
    new_tokens: Count = 20
    """Tokens of each greedy answer."""
    url: str | None = None
    """A server with OpenAI's routes that is compared too, such as http://127.0.0.1:8000. Its API
    key comes from the environment variable ``EASYLLM_API_KEY``."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """A task of EleutherAI's lm-eval."""

    path: Place | None = None
    """A YAML file in lm-eval's format, whose ``data_files`` may be relative to it. Null takes the
    task that easyllm or lm-eval has under this name."""
    few_shot: NonNegativeInt | None = None
    """Solved examples before each item; null takes the task's own number."""
    limit: Count | None = None
    """Most items; null takes all."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSpec:
    tasks: dict[str, TaskSpec | None] = empty()
    """The tasks by name; null takes a task as it is. easyllm has ``python_docs``, the continuation
    of texts of the demo, and ``python_keywords``, 40 questions; ``lm-eval ls tasks`` lists those of
    lm-eval."""
    chat_template: bool = False
    """Ask each item as a user's turn in the model's chat template."""
    baseline: str | None = None
    """A model to compare with, item by item: a folder, a hub id, the directory of another run, or
    ``model.path``, which is the model before this training."""
    batch_size: Count = 8
    """Most items that the model is given at a time."""
