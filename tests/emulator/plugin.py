"""A pytest plugin: the operations of the `cpu` backend are the emulated CUDA kernels.

So every test of the CPU kernels runs the CUDA kernels and their host functions instead.
"""

import importlib.util
import os
import sys
from pathlib import Path

import torch

PACKAGE = Path(__file__).parents[2] / "varemb"
LIBRARY = os.environ["EMULATOR_LIBRARY"]


def _load_library(name: str, why_not_built: str | None) -> str | None:
    if not name.startswith("_C_cpu"):
        return "the emulator stands in for the GPU"
    torch.ops.load_library(LIBRARY)
    return None


# varemb loads its kernels when it is imported: the loader must be another one before.
_spec = importlib.util.spec_from_file_location("varemb._native", PACKAGE / "_native.py")
_native = importlib.util.module_from_spec(_spec)
sys.modules["varemb._native"] = _native
_spec.loader.exec_module(_native)
assert hasattr(_native, "_load_library")
_native._load_library = _load_library
