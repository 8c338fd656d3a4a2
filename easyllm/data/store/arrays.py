"""Numbers between numpy and Arrow.

Arrow's own conversions import pandas first, which takes 0.2 s and is not used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def to_arrow(values: Any) -> Any:
    """A numpy array of one dimension as an Arrow array, of the same memory where it is
    contiguous."""
    content = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, content])


def to_numpy(values: Any) -> Any:
    """An Arrow array of numbers as a read-only numpy array of the same memory. Raises
    ``pyarrow.ArrowInvalid`` where one of them is null."""
    if values.null_count:
        raise pa.ArrowInvalid(f"{values.null_count} of {len(values)} numbers are null")
    kind, end = values.type.to_pandas_dtype(), values.offset + len(values)
    content = values.buffers()[1]
    return np.frombuffer(content, kind, end)[values.offset :] if end else np.empty(0, kind)
