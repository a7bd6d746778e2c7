"""How kernels are launched: the device, the options, how much one program takes on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

# Asserts stay on: an index outside the table must stop the device, not read foreign memory. The
# overflow checks that come with them stay off, because random words are meant to wrap. A product
# and a sum are rounded one after the other, as in the reference, so that every backend rounds the
# same number stochastically.
OPTIONS = {"debug": True, "sanitize_overflow": False, "enable_fp_fusion": False}


def guard(tensor: Tensor) -> AbstractContextManager[object]:
    """The device of a tensor as the current one; launches go there. CPU tensors are interpreted."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


def wide_type(dtype: torch.dtype) -> tl.dtype:
    """What sums of numbers of a dtype are kept in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """`wide_type` as torch names it."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_interpreted(tensor: Tensor) -> bool:
    """Whether the kernels of a call run in the interpreter, on CPU tensors."""
    return not tensor.is_cuda


def columns_block(width: int) -> int:
    """The power of two that holds a row; a row is never split, at most 2048 numbers."""
    return max(int(triton.next_power_of_2(width)), 1)


def rows_block(block: int, numbers: int, count: int, tensor: Tensor) -> int:
    """Rows of `block` numbers in one program's tile of `numbers`, when there are `count` in all.

    The interpreter pays for each program and each step more than for their size: its tiles are as
    large as the work, up to 2^17 numbers.
    """
    if is_interpreted(tensor):
        return max(1, min(int(triton.next_power_of_2(count)), 2**17 // block))
    return max(1, min(256, numbers // block))


def programs_limit(tensor: Tensor) -> int:
    """Programs that share work whose amount only the device knows; each takes every n-th tile.

    Sixteen per multiprocessor fill it with warps of four; more would only start and stop.
    """
    if is_interpreted(tensor):
        return 1
    return 16 * torch.cuda.get_device_properties(tensor.device).multi_processor_count
