"""Loads the compiled kernels that fit this machine; remembers why one is missing."""

from __future__ import annotations

import importlib
import json
import re
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parent
# torch decides what the processor can do (and ATEN_CPU_CAPABILITY overrides it), so that we follow.
_LIBRARIES = {"AVX512": "avx512", "AVX2": "avx2"}


def capability() -> str:
    """The instruction set whose kernels are loaded: avx512, avx2 or default."""
    return _LIBRARIES.get(torch.backends.cpu.get_cpu_capability(), "default")


def build_facts() -> dict[str, Any]:
    """What the build wrote down about itself; empty when the package was never built."""
    path = _FOLDER / "build_info.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _load_library(name: str, why_not_built: str | None) -> str | None:
    library = _FOLDER / name
    if not library.exists():
        return why_not_built or f"{name} was not built (pip install --no-build-isolation .)"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{name} does not load in torch {torch.__version__}: {error}"
    return None


def _load_cuda() -> str | None:
    # The library calls functions that only a CUDA build of torch has.
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) has no CUDA"
    reason = build_facts().get("cuda_missing")
    return _load_library("_C_cuda.so", f"not built: {reason}" if reason else None)


_cpu_missing: str | None = "not loaded yet"
_cuda_missing: str | None = "not loaded yet"


def load() -> None:
    """Loads the kernels; the operations' schemas must be defined before."""
    global _cpu_missing, _cuda_missing
    _cpu_missing = _load_library(f"_C_cpu_{capability()}.so", build_facts().get("cpu_missing"))
    _cuda_missing = _load_cuda()


def cpu_missing() -> str | None:
    """Why the C++ kernels for CPU are missing, or None when they are there."""
    return _cpu_missing


def cuda_missing() -> str | None:
    """Why the CUDA kernels are missing, or None when they are there."""
    return _cuda_missing


def host_missing() -> str | None:
    """Why `varemb._host` is missing (the id map and the negative sampler), or None."""
    try:
        host()
    except ImportError as error:
        return str(error).removeprefix("varemb._host: ")
    return None


def host() -> Any:
    """The compiled module `varemb._host`: numpy in and out, the same for every device.

    Raises:
        ImportError: it was not built or does not load; the message says why.
    """
    if not any((_FOLDER / f"_host{suffix}").exists() for suffix in EXTENSION_SUFFIXES):
        reason = build_facts().get("host_missing") or "it was not built for this Python"
        raise ImportError(f"varemb._host: {reason}, then pip install --no-build-isolation .")
    return importlib.import_module("varemb._host")


def why_not_on_gpu(capability: tuple[int, int]) -> str | None:
    """Why the CUDA kernels were not built for a GPU of this compute capability, or None."""
    built = build_facts().get("cuda_architectures")
    if built is None or any(_runs_on(name, capability) for name in built.split(";")):
        return None
    major, minor = capability
    return f"built for GPUs of {built}, this one is {major}.{minor} (VAREMB_CUDA_ARCH_LIST)"


def why_not_on_driver(driver: int) -> str | None:
    """Why a driver of CUDA 1000 * major + 10 * minor cannot launch the CUDA kernels, or None.

    They bring the runtime of the nvcc that built them, which no driver of an earlier major version
    takes; torch may have been built by an earlier one.
    """
    built = re.search(r"release (\d+)\.", build_facts().get("nvcc") or "")
    if built is None or int(built[1]) <= driver // 1000:
        return None
    major, minor = driver // 1000, driver % 1000 // 10
    return f"built by nvcc {built[1]}, the driver is of CUDA {major}.{minor}: update it"


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on its own major version from its minor one on, PTX on all that follow."""
    number, _, has_ptx = architecture.partition("+")
    major, _, minor = number.partition(".")
    if not minor.isdigit():  # such as 9.0a: code for this one alone
        return f"{capability[0]}.{capability[1]}" == number[:-1]
    own = (int(major), int(minor))
    return own <= capability and (bool(has_ptx) or own[0] == capability[0])
