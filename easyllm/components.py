"""The only place that turns a ``_target_`` into a class.

A word without a dot is a shipped class of the key's role, in upper or lower case: ``cosine`` is
``easyllm.training.schedules.Cosine``. Otherwise only modules under ``easyllm`` and the prefixes in
``components.allow`` are imported, and only classes of that role are accepted.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterable
from pathlib import Path

from easyllm.spec.problems import near
from easyllm.spec.roles import Component
from easyllm.spec.schema import Resolve, UnknownComponent, target_of

FACES = {
    "easyllm.data.tokenizers.backends": "Encoder",
    "easyllm.data.executors.components": "DataEngine",
    "easyllm.data.chat.formats": "Template",
    "easyllm.data.sources.legacy_store": "Reader",
    "easyllm.data.sources.readers": "Reader",
    "easyllm.data.sources.tables": "Reader",
    "easyllm.data.chat.templates": "Template",
    "easyllm.data.tokenizers.components": "Tokenizer",
    "easyllm.inference.engines": "InferenceEngine",
    "easyllm.launchers.auto": "Launcher",
    "easyllm.launchers.local": "Launcher",
    "easyllm.launchers.multi_node": "Launcher",
    "easyllm.launchers.rendezvous": "Launcher",
    "easyllm.launchers.slurm": "Launcher",
    "easyllm.launchers.ssh": "Launcher",
    "easyllm.models.decoders.family": "Family",
    "easyllm.models.families": "Family",
    "easyllm.parallelism.layouts": "Parallelism",
    "easyllm.trackers.mlflow": "Tracker",
    "easyllm.trackers.tensorboard": "Tracker",
    "easyllm.trackers.wandb": "Tracker",
    "easyllm.training.adapters": "Adapter",
    "easyllm.training.optimizers": "Optimizer",
    "easyllm.training.schedules": "Schedule",
}
"""The modules in which shipped components are declared, each with their role."""


RENAMED = {
    "easyllm.data.encoders": "easyllm.data.tokenizers.backends",
    "easyllm.data.engines": "easyllm.data.executors.components",
    "easyllm.data.formats": "easyllm.data.chat.formats",
    "easyllm.data.originals": "easyllm.data.sources.legacy_store",
    "easyllm.data.readers": "easyllm.data.sources.readers",
    "easyllm.data.tables": "easyllm.data.sources.tables",
    "easyllm.data.templates": "easyllm.data.chat.templates",
    "easyllm.data.tokenizers": "easyllm.data.tokenizers.components",
}
"""Modules of components by the names that they had in older versions."""


def resolver(allow: Iterable[str] = (), path: Iterable[str] = ()) -> Resolve:
    """A function that gives the class of a ``_target_`` and a role, for a spec's ``components``."""
    prefixes = ("easyllm", *allow)
    for folder in path:
        if folder not in sys.path:
            sys.path.append(folder)

    def resolve(target: str, role: type[Component]) -> type[Component]:
        module_name, _, name = target.rpartition(".")
        if not module_name:
            return named(target, role)
        if not any(target.startswith(prefix + ".") for prefix in prefixes):
            raise UnknownComponent(
                f"is not under an allowed prefix ({', '.join(prefixes)})",
                f"{near_target(target, role)}; for a class of your own give "
                f"components.allow=[{target.split('.')[0]}]",
            )
        if module_name in RENAMED:
            now = f"{RENAMED[module_name]}.{name}"
            raise UnknownComponent(f"is now {now}", f"give {now}")
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            raise UnknownComponent(
                f"has no module {error.name}",
                near_target(target, role)
                or "put its folder into components.path or give --config-dir",
            ) from None
        except Exception as error:  # the user's module may raise anything
            raise UnknownComponent(
                f"cannot be imported: {type(error).__name__}: {error}", f"fix {module_name}"
            ) from error
        cls = None if name.startswith("_") else getattr(module, name, None)
        if cls is None:
            raise UnknownComponent(f"{module_name} has no {name}", near_target(target, role))
        if not (inspect.isclass(cls) and issubclass(cls, role)) or inspect.isabstract(cls):
            raise UnknownComponent(f"is not a {role.__name__}", near_target(target, role))
        return cls

    return resolve


def outside(folders: Iterable[str], homes: Iterable[Path]) -> list[str]:
    """The folders that are not below any of ``homes``, with links resolved."""
    real = [home.expanduser().resolve() for home in homes]
    return [
        folder
        for folder in folders
        if not any(Path(folder).expanduser().resolve().is_relative_to(home) for home in real)
    ]


def shipped(role: type[Component] = Component) -> list[type[Component]]:
    """The package's own components of a role."""
    found = []
    for name, of in FACES.items():
        if role.__name__ in FACES.values() and of != role.__name__:
            continue  # not imported in vain
        for cls in vars(importlib.import_module(name)).values():
            ours = inspect.isclass(cls) and cls.__module__ == name and cls.__name__[0] != "_"
            if ours and issubclass(cls, role) and not inspect.isabstract(cls):
                found.append(cls)
    return found


def named(word: str, role: type[Component]) -> type[Component]:
    """The shipped component of a role whose class has this name. Raises UnknownComponent."""
    known = {cls.__name__.lower(): cls for cls in shipped(role)}
    if cls := known.get(word.lower()):
        return cls
    choices = f"one of {', '.join(sorted(known))}, or a class of your own as module.Class"
    meant = near(word.lower(), known)
    raise UnknownComponent(
        f"is not a {role.__name__}", f"{meant} {choices}".strip() if known else choices
    )


def near_target(target: str, role: type[Component]) -> str:
    """The shipped component that was probably meant, or all shipped ones of the role."""
    targets = [target_of(cls) for cls in shipped(role)]
    return near(target, targets) or (f"one of {', '.join(targets)}" if targets else "")
