"""The roles a component can take: what stands behind a ``_target_`` in a spec.

A component is a frozen dataclass whose fields are its configuration. Its module
imports the standard library only (its *light face*); what it needs of torch,
transformers, pyarrow and the like it imports inside the methods that do the work.
Each role below is an abstract base; concrete components live in the rooms above
and may live outside the package (``components.allow``).
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
