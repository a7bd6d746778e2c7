"""Contracts of the Triton operations, for a direct call through torch.ops; the fronts check first.

What can be told from shapes is checked here. What needs the data is asserted by the kernels, so
that a call does not wait for the device; in the interpreter it is checked here, with the
reference's words.
"""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference import rows as reference

_MOST_COLUMNS = 2048


def check(holds: bool, message: str) -> None:
    """Raises ValueError with the message when a contract does not hold."""
    if not holds:
        raise ValueError(message)


def check_vector(op: str, name: str, tensor: Tensor) -> None:
    """One-dimensional and contiguous."""
    check(
        tensor.dim() == 1 and tensor.is_contiguous(),
        f"{op}: {name} must be one-dimensional and contiguous",
    )


def check_rows(op: str, index: Tensor, num_rows: int, width: int, granule: int) -> None:
    """The index says something of every row, so that no row number reads past its end."""
    is_packed = index.dim() == 2 and index.shape[1] == 4
    check(
        index.dtype == torch.int64
        and (is_packed or reference.is_paged(index))
        and index.is_contiguous(),
        f"{op}: index must be a contiguous int64 tensor, packed [blocks, 4] or paged [words]",
    )
    held, size = ("blocks of 24 rows", 24) if is_packed else ("words, two handles each", 2)
    check(
        0 <= num_rows <= index.shape[0] * size,
        f"{op}: index has {index.shape[0]} {held}, too few for {num_rows} rows",
    )
    check(0 <= width <= _MOST_COLUMNS, f"{op}: width must be in [0, {_MOST_COLUMNS}], got {width}")
    most = 16 if is_packed else 1
    check(1 <= granule <= most, f"{op}: granule must be in [1, {most}], got {granule}")


def check_indices(op: str, indices: Tensor, num_rows: int, index: Tensor, numbers: int) -> None:
    """int32 or int64, of rows that the table has.

    Raises:
        IndexError: a row is outside the table or absent; in the interpreter only.
    """
    check_vector(op, "indices", indices)
    check(
        indices.dtype in (torch.int32, torch.int64),
        f"{op}: indices must be int32 or int64, got {str(indices.dtype).removeprefix('torch.')}",
    )
    check(
        index.device == indices.device,
        f"{op}: index must be on the device of indices {indices.device}, got {index.device}",
    )
    if not indices.is_cuda:
        reference.check_indices(op, indices, num_rows, index, numbers)


def check_limit(op: str, limit: Tensor | None, lookups: int) -> int:
    """One limit or one per lookup; the step from one lookup's limit to the next, 0 or 1."""
    if limit is None:
        return 0
    check(limit.dtype == torch.int32, f"{op}: limit must be int32")
    check_vector(op, "limit", limit)
    check(
        limit.shape[0] in (1, lookups),
        f"{op}: limit must have one element or one per index ({lookups}), got {limit.shape[0]}",
    )
    return int(limit.shape[0] != 1)


def check_bags(op: str, offsets: Tensor, indices: Tensor, include_last_offset: bool) -> int:
    """Offsets from 0, never decreasing, at most L; the number of bags G."""
    check_vector(op, "offsets", offsets)
    lookups, count = indices.shape[0], offsets.shape[0]
    check(offsets.dtype == indices.dtype, f"{op}: indices and offsets must have the same dtype")
    check(
        not include_last_offset or count > 0, f"{op}: include_last_offset needs at least one offset"
    )
    bags = count - int(include_last_offset)
    check(bags > 0 or lookups == 0, f"{op}: {lookups} indices need at least one bag")
    if not offsets.is_cuda and count:
        first, last = int(offsets[0]), int(offsets[-1])
        check(
            first == 0 and last <= lookups,
            f"{op}: offsets must start at 0 and not pass the number of indices {lookups}, "
            f"got {first} to {last}",
        )
        check(not bool((offsets.diff() < 0).any()), f"{op}: offsets must not decrease")
    return bags


def check_like(op: str, name: str, tensor: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    """A contiguous tensor of the given shape, of the dtype and on the device of another."""
    check(
        tuple(tensor.shape) == shape
        and tensor.is_contiguous()
        and tensor.dtype == like.dtype
        and tensor.device == like.device,
        f"{op}: {name} must be contiguous {list(shape)} of {like.dtype} on {like.device}, "
        f"got {list(tensor.shape)} of {tensor.dtype} on {tensor.device}",
    )
