"""Scaled rotary positions, with the keys of transformers' configuration and of GGUF."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from easyllm.errors import Unusable, UserError
from easyllm.models.gguf.header import Header

BASE = 10000.0
REMEDY = "give the model as a folder in Hugging Face's format, or its hub id"
CONTEXT = 8192
"""The original context of Llama 3."""


def metadata(parameters: Mapping[str, Any]) -> dict[str, float | int | str]:
    """The keys below ``ARCHITECTURE.rope.`` for a configuration's ``rope_parameters``.

    Raises UserError for what llama.cpp cannot compute.
    """
    kind = parameters.get("rope_type", "default")
    found: dict[str, float | int | str] = {"freq_base": float(parameters.get("rope_theta", BASE))}
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(_cannot("partial_rotary_factor other than 1"))
    if kind in ("default", "llama3"):  # Llama 3's are factors in a separate tensor
        return found
    if kind == "linear":
        return found | {"scaling.type": "linear", "scaling.factor": float(parameters["factor"])}
    if kind != "yarn":
        raise UserError(_cannot(f"rope_type {kind}"))
    if not parameters.get("truncate", True):
        raise UserError(_cannot("YaRN with truncate=false"))
    factor = float(parameters["factor"])
    found |= {
        "scaling.type": "yarn",
        "scaling.factor": factor,
        "scaling.original_context_length": int(parameters["original_max_position_embeddings"]),
        "scaling.yarn_beta_fast": float(parameters.get("beta_fast") or 32),
        "scaling.yarn_beta_slow": float(parameters.get("beta_slow") or 1),
    }
    # llama.cpp multiplies its own factor, which is the usual one, by this
    attention = _attention(parameters, factor) / _mscale(factor)
    if not math.isclose(attention, 1.0, rel_tol=1e-6):
        found["scaling.attn_factor"] = attention
    return found


def factors(parameters: Mapping[str, Any], head_dim: int) -> list[float] | None:
    """The factors by which the frequencies of Llama 3's positions are divided, [head_dim / 2]; None
    for other positions."""
    if parameters.get("rope_type") != "llama3":
        return None
    base = float(parameters.get("rope_theta", BASE))
    return [
        _factor(2 * math.pi * base ** (2 * at / head_dim), parameters)
        for at in range(head_dim // 2)
    ]


def parameters(header: Header, head_dim: int, given: Sequence[float] | None) -> dict[str, Any]:
    """A configuration's ``rope_parameters``, from a file's metadata and from ``given``, the factors
    in the file. Raises UserError for what transformers cannot compute."""
    base = float(header.of_model("rope.freq_base", BASE))
    kind = header.of_model("rope.scaling.type", "linear")
    factor = float(
        header.of_model("rope.scaling.factor", 0) or header.of_model("rope.scale_linear", 0) or 1
    )
    found: dict[str, Any] = {"rope_theta": base}
    if given is not None:
        if factor != 1.0:
            raise Unusable(header.file, "scales its rotary positions twice", REMEDY)
        return found | _llama3(header, base, head_dim, given)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return found | {"rope_type": "default"}
    if kind == "linear":
        return found | {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise Unusable(header.file, f"rope.scaling.type={kind} is not read", REMEDY)
    scaled = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": header.of_model(
            "rope.scaling.original_context_length", header.of_model("context_length")
        ),
        "beta_fast": float(header.of_model("rope.scaling.yarn_beta_fast", 32)),
        "beta_slow": float(header.of_model("rope.scaling.yarn_beta_slow", 1)),
    }
    attention = float(header.of_model("rope.scaling.attn_factor", 1))
    if attention != 1.0:
        scaled["attention_factor"] = attention * _mscale(factor)
    return found | scaled


def _cannot(what: str) -> str:
    return (
        f"export.format=gguf: llama.cpp has no rotary positions of {what}; give "
        "export.format=safetensors"
    )


def _mscale(factor: float, by: float = 1.0) -> float:
    return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0


def _attention(parameters: Mapping[str, Any], factor: float) -> float:
    """The factor by which transformers multiplies sines and cosines."""
    given = parameters.get("attention_factor")
    if given is not None:
        return float(given)
    scale, whole = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if scale and whole:
        return _mscale(factor, scale) / _mscale(factor, whole)
    return _mscale(factor)


def _factor(wavelength: float, parameters: Mapping[str, Any]) -> float:
    """The factor by which Llama 3 divides the frequency of a wavelength, which is in tokens."""
    context, factor = parameters["original_max_position_embeddings"], parameters["factor"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return float(factor)
    smooth = (context / wavelength - low) / (high - low)
    return float(1 / ((1 - smooth) / factor + smooth))


def _llama3(header: Header, base: float, head_dim: int, given: Sequence[float]) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these factors."""
    factor, positions = max(given), int(header.of_model("context_length"))
    # the file gives the original context only through its ratio to the two bounds
    original = CONTEXT if positions > CONTEXT else positions // 2
    found = {"rope_type": "llama3", "factor": factor, "original_max_position_embeddings": original}
    start, end = _bounds(base, head_dim, given, factor)
    published = (1.0, 4.0)
    for low, high in (published, (start * original, end * original)):
        found |= {"low_freq_factor": low, "high_freq_factor": high}
        again = factors({**found, "rope_theta": base}, head_dim) or []
        if len(again) == len(given) and all(
            math.isclose(a, b, rel_tol=1e-4) for a, b in zip(again, given, strict=True)
        ):
            return found
    raise Unusable(header.file, "its rope_freqs are not Llama 3's scaling", REMEDY)


def _bounds(
    base: float, head_dim: int, given: Sequence[float], factor: float
) -> tuple[float, float]:
    """The frequencies, in turns a token, between which the scaling changes from full to none.

    The unscaled part is a line from 0 to 1 over the frequency. The line goes through two
    frequencies between its ends, or through one of them and an end.
    """
    if factor <= 1:
        return 0.0, 1.0
    points = [
        (base ** (-2 * at / head_dim) / (2 * math.pi), (1 / value - 1 / factor) / (1 - 1 / factor))
        for at, value in enumerate(given)
    ]
    inner = [(x, y) for x, y in points if 1e-5 < y < 1 - 1e-5]
    scaled = max((x for x, y in points if y <= 1e-5), default=0.0)
    whole = min((x for x, y in points if y >= 1 - 1e-5), default=2 * points[0][0])
    if not inner:
        start, end = scaled, whole
    elif len(inner) == 1:
        ((x, y),) = inner
        start, end = scaled, scaled + (x - scaled) / y
        if end > whole:
            start, end = x - y * (whole - x) / (1 - y), whole
    else:
        (x, y), (further, lower) = inner[0], inner[-1]
        slope = (y - lower) / (x - further)
        start, end = x - y / slope, x + (1 - y) / slope
    return start, end
