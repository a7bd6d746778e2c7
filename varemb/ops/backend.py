"""Which implementation of the operations runs: one ordered list, and why one cannot."""

from __future__ import annotations

import functools
from typing import Any

import torch

from varemb import _native
from varemb.ops import reference, schemas

# Best first, for tensors of a device. An explicit `backend=` is never replaced by another.
PREFERENCE = {
    "cpu": ("cpu", "reference"),
    "cuda": ("reference",),
    "meta": ("reference",),
}
BACKENDS = ("cpu", "reference")

for _name in schemas.SCHEMAS:
    if hasattr(reference, _name):
        schemas.LIBRARIES["varemb_reference"].impl(
            _name, getattr(reference, _name), "CompositeExplicitAutograd"
        )
_native.load()


def why_not(backend: str, device: str) -> str | None:
    """The reason why a backend cannot run on tensors of a device type, or None when it can.

    Raises:
        ValueError: there is no backend of that name.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "reference":
        return None
    if device != backend:
        return f"backend {backend!r} runs on {backend} tensors, got {device}"
    return _native.cpu_missing()


@functools.cache
def choose(backend: str | None, device: str) -> str:
    """The backend to run: the one asked for, or the first of the list that can.

    Args:
        backend: a name, or None for the automatic choice.
        device: device type of the table, such as "cpu".

    Raises:
        RuntimeError: the backend asked for cannot run here; the message says why.
    """
    if backend is not None:
        reason = why_not(backend, device)
        if reason is not None:
            raise RuntimeError(f"backend {backend!r} cannot run: {reason}")
        return backend
    for name in PREFERENCE.get(device, ("reference",)):
        if why_not(name, device) is None:
            return name
    raise RuntimeError(f"no backend runs on {device} tensors")


def namespace(name: str) -> Any:
    """The torch.ops namespace of a backend."""
    return torch.ops.varemb_reference if name == "reference" else torch.ops.varemb
