"""The variables that ranks on other machines get from the environment of the run's start."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Sequence

from easyllm.spec.roles import Launcher

NEEDED = (
    # talking to each other
    "NCCL_*", "GLOO_*", "UCX_*", "FI_*",
    # computing
    "CUDA_*", "CUBLAS_*", "TORCH_*", "TORCHINDUCTOR_*", "PYTORCH_*", "TRITON_*",
    "FLASH_ATTENTION_*", "OMP_*", "MKL_*", "KMP_*", "DS_*", "DEEPSPEED_*",
    # models and tokenizers
    "HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "TOKENIZERS_*",
    # access to the network
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
"""Variables that training reads, which mean the same on every machine."""

OWN = ("CUDA_VISIBLE_DEVICES", "CUDA_MPS_*")
"""Variables among these that describe the devices of one machine."""


def passed(launcher: Launcher, *, needed: bool) -> dict[str, str]:
    """The variables of this environment that ranks on other machines get, and those of the spec.

    NEEDED ones are included if ``needed``: where those machines have only a login environment, and
    not where the command was started on each of them with its own environment.
    """
    found = named(NEEDED) if needed else {}
    found = {name: value for name, value in found.items() if not _matches(name, OWN)}
    return {**found, **named(launcher.pass_env), **launcher.env}


def named(patterns: Sequence[str]) -> dict[str, str]:
    """The variables of this environment whose names match."""
    return {name: value for name, value in os.environ.items() if _matches(name, patterns)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
