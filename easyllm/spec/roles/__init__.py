"""The roles of components, which are the classes that a ``_target_`` in a spec can name.

A component is a frozen dataclass whose fields are its configuration. Its module
imports the standard library only; torch, transformers, pyarrow and similar packages are
imported inside the methods that use them.
Each role below is an abstract base class. Concrete components are in the other packages of
easyllm, and may be outside easyllm (``components.allow``).
"""

from easyllm.spec.roles.base import Component
from easyllm.spec.roles.data import (
    ByteRange,
    ChatDocument,
    DataEngine,
    Document,
    Encoder,
    File,
    Message,
    Reader,
    Record,
    Rejected,
    Template,
    Tokenizer,
)
from easyllm.spec.roles.inference import InferenceEngine
from easyllm.spec.roles.launching import Launch, Launcher
from easyllm.spec.roles.models import Family, LayerShape, ModelShape
from easyllm.spec.roles.training import Adapter, Optimizer, Parallelism, Schedule, Tracker

__all__ = [
    "Component",
    "ChatDocument",
    "DataEngine",
    "Document",
    "Encoder",
    "File",
    "Message",
    "ByteRange",
    "Reader",
    "Record",
    "Rejected",
    "Template",
    "Tokenizer",
    "InferenceEngine",
    "Launch",
    "Launcher",
    "Family",
    "LayerShape",
    "ModelShape",
    "Adapter",
    "Optimizer",
    "Parallelism",
    "Schedule",
    "Tracker",
]
