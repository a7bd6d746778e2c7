"""Huge pages for big CPU buffers: a random row then costs no walk through the page table."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

_MADV_HUGEPAGE = 14
_PAGE = 2 << 20


def _find_madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


_madvise = _find_madvise()


def prefer_huge_pages(buffer: Tensor) -> Tensor:
    """The same tensor, whose memory Linux is asked to back with 2-MiB pages.

    A hint: it changes no number, takes no memory beyond the buffer, and does nothing for small
    buffers, other devices and other systems. Most useful before the memory is first written.
    """
    if (
        _madvise is None
        or buffer.device.type != "cpu"
        or isinstance(buffer, torch._subclasses.FakeTensor)
    ):
        return buffer
    start = -(-buffer.data_ptr() // _PAGE) * _PAGE
    end = (buffer.data_ptr() + buffer.untyped_storage().nbytes()) // _PAGE * _PAGE
    if end > start:
        _madvise(start, end - start, _MADV_HUGEPAGE)
    return buffer
