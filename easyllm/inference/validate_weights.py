"""Checks that the files of a model match its configuration, before an engine loads them."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

import easyllm.models.custom  # noqa: F401  registers what transformers does not have
from easyllm.errors import UserError
from easyllm.models import tensor_files
from easyllm.models.families import family_named
from easyllm.models.layers import tensor_shapes
from easyllm.models.weights import WeightFiles
from easyllm.printable import some_of


def check_weights(folder: Path) -> None:
    """Raises UserError, listing the tensors that are absent, spare or of another shape.

    Engines fill in what is absent, or only report that a process ended. Models of other
    families and quantized ones are left to the engine. Reads no tensor.
    """
    config = AutoConfig.from_pretrained(folder)
    family = family_named(config.model_type)
    if getattr(config, "quantization_config", None):
        return
    if not (messages := tensor_files.problems(folder)):
        try:
            layers = family.layers(config, "eager")
        except (UserError, ValueError, AttributeError):  # not a decoder that easyllm trains
            return
        shapes = tensor_shapes(layers)
        # transformers keeps a separate head in the files of a tied model, with a warning
        shared = {f"{spec.name}.weight": "" for spec in layers if spec.tied_to}
        messages = WeightFiles(folder, family.names(config)).problems(shapes, shapes, shared)
    if messages:
        raise UserError(
            f"{some_of(messages, sep='; ')}; the files and {folder / 'config.json'} are not of one "
            "model, or their download did not end: fetch them again"
        )
