"""Which implementation of the operations runs: one ordered list, and why one cannot."""

from __future__ import annotations

import functools
import importlib
import os
from typing import Any

import torch

from varemb import _native
from varemb.ops import reference, schemas

# Best first, for tensors of a device. An explicit `backend=` is never replaced by another.
PREFERENCE = {
    "cpu": ("cpu", "reference"),  # Triton's interpreter is for tests: slower than the reference
    "cuda": ("cuda", "triton", "reference"),  # compiled ahead, then compiled at the first call
    "meta": ("reference",),
}
BACKENDS = ("cpu", "cuda", "triton", "reference")
_NAMESPACES = {"triton": "varemb_triton", "reference": "varemb_reference"}


_OPERATIONS = [name for name in schemas.SCHEMAS if hasattr(reference, name)]


def _register(backend: str, implementations: dict[str, Any]) -> None:
    library = schemas.LIBRARIES[_NAMESPACES[backend]]
    for name in _OPERATIONS:
        library.impl(name, implementations[name], "CompositeExplicitAutograd")


def _is_interpreted() -> bool:
    # Triton reads it when a kernel is defined; set later, it changes nothing.
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def _load_triton() -> str | None:
    """Registers Triton's implementations; the reason when there are none."""
    has_gpu_torch = torch.version.cuda is not None or torch.version.hip is not None
    if not has_gpu_torch and not _INTERPRETED:
        return (
            f"this torch ({torch.__version__}) has no GPU support, and Triton's interpreter is off "
            "(TRITON_INTERPRET=1 before varemb is imported)"
        )
    try:
        # Imported only where it can run: Triton takes part of a second to import.
        package = importlib.import_module("varemb.ops.triton")
    except ImportError as error:
        return f"triton does not import: {error}"
    _register("triton", package.IMPLEMENTATIONS)
    return None


_register("reference", {name: getattr(reference, name) for name in _OPERATIONS})
_native.load()
_INTERPRETED = _is_interpreted()
_TRITON_MISSING = _load_triton()


def why_not(backend: str, device: str) -> str | None:
    """The reason why a backend cannot run on tensors of a device type, or None when it can.

    Raises:
        ValueError: there is no backend of that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference":
        return None
    if backend == "triton":
        return _why_not_triton(device)
    if device != backend:
        return f"backend {backend!r} runs on {backend} tensors, got {device}"
    if backend == "cpu":
        return _native.cpu_missing()
    return _why_not_cuda()


def _why_not_cuda() -> str | None:
    reason = _native.cuda_missing() or _why_no_gpu()
    reason = reason or _native.why_not_on_gpu(torch.cuda.get_device_capability())
    return reason or _native.why_not_on_driver(torch._C._cuda_getDriverVersion())  # type: ignore[attr-defined]


def _why_not_triton(device: str) -> str | None:
    if device not in ("cpu", "cuda"):
        return f"backend 'triton' runs on cuda tensors, got {device}"
    if _TRITON_MISSING is not None:
        return _TRITON_MISSING
    if device == "cuda":
        return _why_no_gpu()
    if not _INTERPRETED:
        return (
            "backend 'triton' runs on cpu tensors in Triton's interpreter only "
            "(TRITON_INTERPRET=1 before varemb is imported)"
        )
    return None


def _why_no_gpu() -> str | None:
    return None if torch.cuda.is_available() else "torch sees no GPU"


@functools.cache
def _choose(backend: str | None, device: str) -> str:
    if backend is not None:
        reason = why_not(backend, device)
        if reason is not None:
            raise RuntimeError(f"backend {backend!r} cannot run: {reason}")
        return backend
    for name in PREFERENCE.get(device, ("reference",)):
        if why_not(name, device) is None:
            return name
    raise RuntimeError(f"no backend runs on {device} tensors")


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def choose(backend: str | None, device: str) -> str:
    """The backend to run: the one asked for, or the first of the list that can.

    Args:
        backend: a name, or None for the automatic choice.
        device: device type of the table, such as "cpu".

    Raises:
        RuntimeError: the backend asked for cannot run here; the message says why.
    """
    return _choose(backend, device)


def namespace(name: str) -> Any:
    """The torch.ops namespace of a backend."""
    return getattr(torch.ops, _NAMESPACES.get(name, "varemb"))
