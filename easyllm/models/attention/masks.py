"""Masks that models make themselves."""

from __future__ import annotations

from typing import Any


def refuse_mask(attention_mask: Any) -> None:
    """Attention by document needs no mask. Raises ValueError for one that a model has made, such as
    Doge's, which would be lost."""
    if attention_mask is not None:
        raise ValueError("attention by document does not take the mask that this model makes")
