"""What the models here need to run in transformers 4.57 as in 5.

Version 4 has configurations that are no dataclasses, and no table by which published names
become a model's own while its weights are loaded. An exported model carries this file too.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import GenerationConfig, PretrainedConfig, PreTrainedModel

try:
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

    CONVERTS = True
    """Whether transformers itself converts published names."""
except ImportError:
    CONVERTS = False

Config = TypeVar("Config", bound=type[PretrainedConfig])
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def from_fields(config: Config) -> Config:
    """A configuration that is made of its fields and ``__post_init__`` in version 4 too."""
    if hasattr(PretrainedConfig, "__post_init__"):
        return config
    fields = {name: getattr(config, name) for name in config.__annotations__}

    def init(self: Any, **given: Any) -> None:
        PretrainedConfig.__init__(self, **(fields | given))
        self.__post_init__()

    config.__init__ = init  # type: ignore[method-assign, assignment]
    return config


class PublishedNames(PreTrainedModel):
    """A model whose parameters are named otherwise than its published tensors: ``RENAMED`` has
    parts of its names and what they are called in the files, ``FUSED`` the tensors of the files
    that hold the rows of several parameters one after the other."""

    RENAMED: Mapping[str, str] = {}
    FUSED: Mapping[str, tuple[str, ...]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if CONVERTS:
            renaming = [WeightRenaming(theirs, ours) for ours, theirs in cls.RENAMED.items()]
            splitting = [
                WeightConverter(theirs, list(ours), operations=[Chunk(dim=0)])
                for theirs, ours in cls.FUSED.items()
            ]
            register_checkpoint_conversion_mapping(
                cls.__name__, [*renaming, *splitting], overwrite=True
            )

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        if CONVERTS or name is None:
            return super().from_pretrained(name, *args, **kwargs)
        folder = Path(name)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            patterns = ["*.json", *WEIGHTS]
            revision = kwargs.get("revision")
            folder = Path(snapshot_download(name, allow_patterns=patterns, revision=revision))
        made: Any = cls.config_class
        config = kwargs.pop("config", None) or made.from_pretrained(folder)
        own = cls._own_names(_tensors(folder))
        model = super().from_pretrained(None, *args, config=config, state_dict=own, **kwargs)
        if (folder / "generation_config.json").exists():
            loaded, _ = model if isinstance(model, tuple) else (model, None)
            loaded.generation_config = GenerationConfig.from_pretrained(folder)
        return model

    @classmethod
    def _own_names(cls, published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = {}
        for name, tensor in published.items():
            for ours, theirs in cls.RENAMED.items():
                name = name.replace(theirs, ours)
            fused = next((part for part in cls.FUSED if part in name), None)
            parts = cls.FUSED[fused] if fused else ()
            if fused is None:
                found[name] = tensor
            for part, rows in zip(parts, tensor.chunk(max(1, len(parts))), strict=False):
                found[name.replace(fused or "", part)] = rows
        return found


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(WEIGHTS[0])):
        found |= load_file(file)
    for file in sorted(folder.glob(WEIGHTS[1])) if not found else ():
        found |= torch.load(file, map_location="cpu", weights_only=True)
    return found
