"""Whether the files of a model are those of its configuration, before an engine takes them."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.families import family_named
from easyllm.models.layers import parameter_shapes
from easyllm.models.weights import WeightFiles
from easyllm.printable import some_of


def check_weights(folder: Path) -> None:
    """Raise UserError that lists the tensors that are absent, spare or of another shape.

    Engines fill in what is absent, or say no more than that a process ended. Models of other
    families and quantized ones are left to the engine. Reads no tensor.
    """
    config = AutoConfig.from_pretrained(folder)
    family = family_named(config.model_type)
    if family is None or getattr(config, "quantization_config", None):
        return
    if not (messages := tensor_files.problems(folder)):
        layers = family.layers(config, "sdpa")
        shapes = parameter_shapes(layers)
        # a head of its own in the files of a tied model transformers keeps, with a warning
        shared = {f"{spec.name}.weight": "" for spec in layers if spec.tied_to}
        messages = WeightFiles(folder, family.names()).problems(shapes, shapes, shared)
    if messages:
        raise UserError(
            f"{some_of(messages, sep='; ')}; the files and {folder / 'config.json'} are not of one "
            "model, or their download did not end: fetch them again"
        )
