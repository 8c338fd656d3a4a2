"""Field types with a range, shared by every dataclass of a spec."""

from __future__ import annotations

import re
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """Bounds of a number, in the field's unit; ``above`` is a lower bound that is excluded."""

    low: float | None = None
    high: float | None = None
    above: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
        )

    def __str__(self) -> str:
        parts = []
        if self.above is not None:
            parts.append(f"above {self.above:g}")
        if self.low is not None:
            parts.append(f"at least {self.low:g}")
        if self.high is not None:
            parts.append(f"at most {self.high:g}")
        return " and ".join(parts)


@dataclass(frozen=True)
class Location:
    """Marks a path, relative to the folder in which a run is started unless absolute.

    It is absolute in a resolved spec, so that the run is the same from any folder.
    """

    or_hub: bool = False
    """Whether the text may name a model on a hub or in a package instead."""


UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
"""Seconds of each unit of a length of time."""


@dataclass(frozen=True)
class Time:
    """Marks a length of time: text with units, ``90m``, ``2h``, ``1d12h``, or, for a float field,
    a number of seconds. A float holds the seconds, a str holds the text as it was given."""

    @staticmethod
    def seconds(text: str) -> float | None:
        """None where the text is no length of time."""
        units = "".join(rf"(?:([\d.]+){unit})?" for unit in UNITS)
        found = re.fullmatch(units, text.replace(" ", "").lower())
        try:
            parts = [float(number or 0) for number in found.groups()] if found and text else []
        except ValueError:
            return None
        return (
            sum(n * unit for n, unit in zip(parts, UNITS.values(), strict=True)) if parts else None
        )


Place = Annotated[str, Location()]
ModelPath = Annotated[str, Location(or_hub=True)]
Count = Annotated[int, Range(low=1)]
NonNegativeInt = Annotated[int, Range(low=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(low=0)]
TimeText = Annotated[str, Time()]
Duration = Annotated[float, Range(above=0), Time()]
Fraction = Annotated[float, Range(low=0, high=1)]
Port = Annotated[int, Range(low=1, high=65535)]
DType = Literal["float32", "bfloat16"]


def named(hint: Any) -> str:
    """What a field of this type must be, in words."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if typing.get_origin(hint) is typing.Annotated:
        base, *bounds = typing.get_args(hint)
        if base is str and any(isinstance(bound, Time) for bound in bounds):
            return "a length of time such as 30m"
        ranges = [f" {bound}" for bound in bounds if isinstance(bound, Range)]
        return "".join([named(base), *ranges])
    if hint in names:
        return names[hint]
    if typing.get_origin(hint) is dict:
        return "a map by name"
    if typing.get_origin(hint) is tuple:
        return "a list"
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    return f"a {getattr(hint, '__name__', hint)}"
