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
    devices = {backend: backend if backend in PREFERENCE else "cpu" for backend in BACKENDS}
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cpu_capability": _native.capability(),
        "threads": torch.get_num_threads(),
        "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "backends": {
            backend: why_not(backend, device) or "available" for backend, device in devices.items()
        },
        "build": _native.build_facts(),
    }
