"""GPU tests skip by name where there is no CUDA device; properties are tried on the same examples
each time, however slow the machine is."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from easyllm.preflight.machine import cuda_devices

settings.register_profile(
    "same", derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    found = cuda_devices()
    for item in items:
        if mark := item.get_closest_marker("gpu"):
            wanted = mark.kwargs.get("devices", 1)
            if found < wanted:
                reason = f"needs {wanted} CUDA devices, this machine has {found}"
                item.add_marker(pytest.mark.skip(reason=reason))
