"""Loads the compiled kernels that fit this machine; remembers why one is missing."""

from __future__ import annotations

import json
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


def _load_cpu() -> str | None:
    library = _FOLDER / f"_C_cpu_{capability()}.so"
    if not library.exists():
        reason = build_facts().get("cpu_missing")
        return reason or f"{library.name} was not built (pip install --no-build-isolation .)"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{library.name} does not load in torch {torch.__version__}: {error}"
    return None


_cpu_missing: str | None = "not loaded yet"


def load() -> None:
    """Loads the kernels; the operations' schemas must be defined before."""
    global _cpu_missing
    _cpu_missing = _load_cpu()


def cpu_missing() -> str | None:
    """Why the C++ kernels for CPU are missing, or None when they are there."""
    return _cpu_missing
