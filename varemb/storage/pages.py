"""Huge pages for big CPU buffers: a random row then costs no walk through the page table."""

from __future__ import annotations

import ctypes
import sys

import torch
from torch import Tensor

_MADV_DONTNEED = 4
_MADV_HUGEPAGE = 14
_PAGE = 2 << 20
_COPIED_AT_A_TIME = 8 << 20  # bytes that are there twice while a buffer moves
_OURS = "_is_of_varemb"  # attribute of memory that this module has made


def _find_madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux":
        return None
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None:
        madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return madvise


_madvise = _find_madvise()


def prefer_huge_pages(buffer: Tensor) -> Tensor:
    """The same tensor, which has just been made, on memory that Linux is asked to back with 2-MiB
    pages.

    A hint: it changes no number, takes no memory beyond the buffer, and does nothing for small
    buffers, other devices and other systems. Most useful before the memory is first written.
    """
    if (
        _madvise is None
        or buffer.device.type != "cpu"
        or isinstance(buffer, torch._subclasses.FakeTensor)
    ):
        return buffer
    first, memory = buffer.data_ptr(), buffer.untyped_storage()
    setattr(memory, _OURS, True)
    _advise(first, first + memory.nbytes(), _MADV_HUGEPAGE)
    return buffer


def _advise(first: int, end: int, advice: int) -> None:
    """Tells Linux about the whole 2-MiB pages between two addresses."""
    start, end = -(-first // _PAGE) * _PAGE, end // _PAGE * _PAGE
    if _madvise is not None and end > start:
        _madvise(start, end - start, advice)


def with_room(numbers: int, room: int, like: Tensor) -> Tensor:  # [numbers]
    """An uninitialised tensor whose memory has room for more numbers (`resized`)."""
    return prefer_huge_pages(like.detach().new_empty(max(numbers, room)))[:numbers]


def room_of(tensor: Tensor) -> int:
    """Numbers that the memory of a flat tensor has room for."""
    nbytes = int(tensor.untyped_storage().nbytes())
    return nbytes // tensor.element_size() - int(tensor.storage_offset())


def resized(tensor: Tensor, numbers: int) -> Tensor:  # [E] -> [numbers]
    """The same memory as a flat tensor of another length, at most `room_of(tensor)`."""
    return tensor.detach().as_strided((numbers,), (1,))


def is_alone(tensor: Tensor) -> bool:
    """Whether a tensor's memory is of this module, and nothing else looks at it: no view, no state
    dict, no array of numpy's."""
    memory = tensor.untyped_storage()
    # The tensor and `memory` are the two.
    return hasattr(memory, _OURS) and torch._C._storage_Use_Count(memory._cdata) == 2


def moved(tensor: Tensor, kept: int, numbers: int, room: int = 0) -> Tensor:  # [E] -> [numbers]
    """New memory with the first `kept` numbers of a tensor, whose own memory is lost.

    On the CPU the old memory is given back while the copy goes on, so that no second buffer is
    ever resident. Elsewhere, and where the memory is not the tensor's alone, both are there for the
    time of the copy.
    """
    is_lost = tensor.device.type == "cpu" and is_alone(tensor)
    old = tensor.detach()
    new = with_room(numbers, room, old)
    if not is_lost:
        new[:kept] = old[:kept]
        return new
    step = max(1, _COPIED_AT_A_TIME // old.element_size())
    first, given_back = old.data_ptr(), old.data_ptr()
    for begin in range(0, kept, step):
        end = min(begin + step, kept)
        new[begin:end] = old[begin:end]
        copied = (first + end * old.element_size()) // _PAGE * _PAGE
        _advise(given_back, copied, _MADV_DONTNEED)
        given_back = max(given_back, copied)
    return new


def give_memory(tensor: Tensor, memory: Tensor) -> None:
    """Lets a tensor have other memory, maybe of another length.

    What adds a parameter's gradient up keeps its length as long as any graph is alive, such as that
    of the last step's loss. Torch makes it anew where the data gets another type.
    """
    if tensor.requires_grad:
        other = torch.float32 if tensor.dtype == torch.float64 else torch.float64
        tensor.data = memory.new_empty(0, dtype=other)
    tensor.data = memory


def fitted(tensor: Tensor, kept: int, numbers: int, room: int | None) -> Tensor:
    """The first `kept` numbers at another length, in the same memory where it has room."""
    if numbers <= room_of(tensor):
        return resized(tensor, numbers)
    return moved(tensor, kept, numbers, room or 0)
