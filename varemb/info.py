"""What is installed, what runs here, and why something does not."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import torch

from varemb import _native
from varemb.ops.backend import BACKENDS, PREFERENCE, why_not


def build_info() -> dict[str, Any]:
    """Versions, backends and the reason where one is missing; `varemb info` prints it."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": _native.capability(),
        "threads": torch.get_num_threads(),
        "cuda_device": _describe_gpu(),
        "backends": {backend: _describe(backend) for backend in BACKENDS},
        "host_module": _native.host_missing() or "available",
        "build": _native.build_facts(),
    }


def _describe_gpu() -> str | None:
    """Name and compute capability of the first GPU, such as "NVIDIA H200 (sm_90)"."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability()
    return f"{torch.cuda.get_device_name()} (sm_{major}{minor})"


def _describe(backend: str) -> str:
    """Where a backend runs, or why it runs nowhere: on the device that it is first meant for."""
    reasons = {device: why_not(backend, device) for device in _devices(backend)}
    runs = [device for device, reason in reasons.items() if reason is None]
    if not runs:
        return str(next(iter(reasons.values())))
    interpreted = backend == "triton" and runs == ["cpu"]
    return "available" + (" on the CPU, in Triton's interpreter" if interpreted else "")


def _devices(backend: str) -> tuple[str, ...]:
    if backend == "triton":
        # Without a GPU, why its CPU form is off says more than that there is no GPU.
        return ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    return (backend if backend in PREFERENCE else "cpu",)
