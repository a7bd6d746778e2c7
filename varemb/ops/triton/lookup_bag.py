# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Pooled rows of different dims: sum, mean or max of each bag; the gradient of their weights."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.arithmetic import divide, narrow, widen
from varemb.ops.triton.checks import (
    check,
    check_bags,
    check_indices,
    check_like,
    check_limit,
    check_rows,
    check_vector,
)
from varemb.ops.triton.launch import OPTIONS, columns_block, guard, rows_block, wide_type
from varemb.ops.triton.rows import look_up, places

MAX = 2
_MEAN = tl.constexpr(1)
_MAX = tl.constexpr(MAX)


@triton.jit
def bag_bounds(offsets_ptr, bag, bags, lookups, HAS_LAST: tl.constexpr):
    """First lookup and end of bags [n], and whether they lie in order and in the call."""
    inside = bag < bags
    has_next = inside
    if not HAS_LAST:
        has_next = bag + 1 < bags
    begin = tl.load(offsets_ptr + bag, mask=inside, other=0).to(tl.int64)
    end = tl.load(offsets_ptr + bag + 1, mask=has_next, other=0).to(tl.int64)
    end = tl.where(inside & ~has_next, lookups, end)
    is_good = (begin >= 0) & (begin <= end) & (end <= lookups) & ((bag > 0) | (begin == 0))
    return tl.where(is_good, begin, 0), tl.where(is_good, end, 0), is_good


@triton.jit
def lookup_bag_kernel(
    values_ptr,  # [E]
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [L]
    offsets_ptr,  # [G] or [G + 1]
    weights_ptr,  # [L], or None
    limit_ptr,  # [1] or [L], or None
    out_ptr,  # [G, D]
    winners_ptr,  # [G, D] for max
    lookups,
    bags,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    padding_idx,
    POOLING: tl.constexpr,
    HAS_LAST: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    UNROLL: tl.constexpr,
):
    # A program takes ROWS bags and walks all of them at once, lookup by lookup, so each sum runs in
    # the order of its lookups. Every number is read once. Deterministic.
    bag = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    begin, end, is_good = bag_bounds(offsets_ptr, bag, bags, lookups, HAS_LAST)
    column = tl.arange(0, BLOCK_D)[None, :]
    total = tl.zeros([ROWS, BLOCK_D], WIDE)
    winner = tl.full([ROWS, BLOCK_D], -1, tl.int32)
    count = tl.zeros([ROWS], tl.int32)
    for step in range(0, tl.max(end - begin, 0), UNROLL):
        for ahead in tl.static_range(UNROLL):  # the loads of these lookups do not wait in turn
            lookup = begin + step + ahead
            mask = lookup < end
            row, offset, dim, is_row = look_up(
                index_ptr, indices_ptr, limit_ptr, lookup, mask, num_rows, width, granule, chunks,
                numbers, limit_step,
            )  # fmt: skip
            is_good = is_good & (is_row | (lookup >= end))
            kept = is_row & (row != padding_idx)
            inside = kept[:, None] & (column < dim[:, None])
            from_ptr = values_ptr + offset[:, None] + column
            read = widen(tl.load(from_ptr, mask=inside, other=0.0), WIDE)
            if POOLING == _MAX:
                is_better = (total == total) & ((read > total) | (read != read))
                is_better = kept[:, None] & ((winner < 0) | is_better)
                total = tl.where(is_better, read, total)
                winner = tl.where(is_better, lookup.to(tl.int32)[:, None], winner)
            else:
                if weights_ptr is not None:
                    weight = widen(tl.load(weights_ptr + lookup, mask=kept, other=0.0), WIDE)
                    read = read * weight[:, None]
                total += read
                count += kept.to(tl.int32)
    tl.device_assert(is_good | (bag >= bags), "lookup_bag: an index or an offset is out of range")
    if POOLING == _MEAN:
        total = divide(total, tl.maximum(count, 1).to(WIDE)[:, None])
    to = bag[:, None] * width + column
    mask = (bag < bags)[:, None] & (column < width)
    tl.store(out_ptr + to, narrow(total, out_ptr.dtype.element_ty), mask=mask)
    if POOLING == _MAX:
        tl.store(winners_ptr + to, winner, mask=mask)


@triton.jit
def weights_backward_kernel(
    grad_ptr,  # [G, D]
    values_ptr,  # [E]
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [L]
    bag_ptr,  # [L], the bag of each lookup
    limit_ptr,  # [1] or [L], or None
    out_ptr,  # [L]
    lookups,  # in bags
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    padding_idx,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes ROWS lookups and reads each one's row and the gradient of its bag.
    # Deterministic.
    lookup = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = lookup < lookups
    row, offset, dim, is_row = look_up(
        index_ptr, indices_ptr, limit_ptr, lookup, mask, num_rows, width, granule, chunks, numbers,
        limit_step,
    )  # fmt: skip
    tl.device_assert(is_row | (lookup >= lookups), "lookup_bag: an index is out of range")
    bag = tl.load(bag_ptr + lookup, mask=mask, other=-1)  # -1: an included last offset left it out
    kept = is_row & (row != padding_idx) & (bag >= 0)
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = kept[:, None] & (column < dim[:, None])
    left = tl.load(values_ptr + offset[:, None] + column, mask=inside, other=0.0)
    right = tl.load(grad_ptr + bag[:, None] * width + column, mask=inside, other=0.0)
    dot = tl.sum(widen(left, WIDE) * widen(right, WIDE), 1)
    tl.store(out_ptr + lookup, narrow(dot, out_ptr.dtype.element_ty), mask=mask)


# Numbers in a tile: 2 per thread of four warps. Every thread keeps the bounds and the place of each
# bag of its tile, which is what fills the registers: at 8 per thread 250 of them, and spills.
_TILE = 256
_UNROLL = 2


def bag_of_lookups(offsets: Tensor, lookups: int, include_last_offset: bool) -> Tensor:
    """The bag of each lookup; -1 behind an included last offset. [L] int64"""
    positions = torch.arange(lookups, dtype=offsets.dtype, device=offsets.device)
    begins = offsets[:-1] if include_last_offset else offsets
    bag = torch.searchsorted(begins, positions, right=True) - 1
    if include_last_offset:
        bag = torch.where(positions < offsets[-1], bag, -1)
    return bag


def lookup_bag(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    limit: Tensor | None,
    num_rows: int,
    width: int,
    granule: int,
    pooling: int,
    padding_idx: int,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor]:
    """Sum, mean or max of the zero-padded rows of each bag; an empty bag is zeros.

    Lookups are not sorted by dim here: a bag is added in the order of its lookups, whatever their
    dims, and lanes beyond a row's dim read no memory.

    Args:
        values: the numbers of all rows. [E]
        index: packed [blocks, 4] or paged [words] index, int64.
        indices: rows to read, repeats allowed; padding_idx is left out. [L], int32 or int64.
        offsets: where each bag begins. [G], or [G + 1] with include_last_offset.
        per_sample_weights: factor of each row, for a sum. [L], dtype of values.
        limit: numbers to read at most. [1] or [L], int32.
        num_rows, width, granule: as in `Rows`.
        pooling: 0 sum, 1 mean, 2 max.
        padding_idx: row that does not count; -1 for none.
        include_last_offset: the last offset is the end of the last bag.

    Returns:
        [G, D] of the dtype of values; for max the lookup that gave each number [G, D] int32, -1
        for an empty bag, else [0, D].

    Raises:
        ValueError, IndexError: as `lookup`, or the bags are malformed (on a GPU a device assert).

    Deterministic: yes.
    """
    op = "lookup_bag"
    check_vector(op, "values", values)
    check_rows(op, index, num_rows, width, granule)
    check_indices(op, indices, num_rows, index, values.shape[0])
    lookups = indices.shape[0]
    limit_step = check_limit(op, limit, lookups)
    bags = check_bags(op, offsets, indices, include_last_offset)
    check(pooling in (0, 1, 2), f"{op}: mode must be 0 (sum), 1 (mean) or 2 (max), got {pooling}")
    check(pooling != MAX or lookups < 2**31, f"{op}: max takes at most 2^31 - 1 indices")
    if per_sample_weights is not None:
        check_like(op, "per_sample_weights", per_sample_weights, (lookups,), values)
    out = torch.empty((bags, width), dtype=values.dtype, device=values.device)
    shape = (bags if pooling == MAX else 0, width)
    winners = torch.empty(shape, dtype=torch.int32, device=values.device)
    if out.numel() == 0:
        return out, winners
    block = columns_block(width)
    rows = rows_block(block, _TILE, bags, values)
    with guard(values):
        lookup_bag_kernel[(triton.cdiv(bags, rows),)](
            **places(index, num_rows, width, granule, values.shape[0]),
            values_ptr=values,
            indices_ptr=indices,
            offsets_ptr=offsets,
            weights_ptr=per_sample_weights if pooling == 0 else None,
            limit_ptr=limit,
            out_ptr=out,
            winners_ptr=winners,
            lookups=lookups,
            bags=bags,
            limit_step=limit_step,
            padding_idx=padding_idx,
            POOLING=pooling,
            HAS_LAST=include_last_offset,
            WIDE=wide_type(values.dtype),
            ROWS=rows,
            BLOCK_D=block,
            UNROLL=_UNROLL,
            **OPTIONS,
        )
    return out, winners


def lookup_bag_weights_backward(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor,
    limit: Tensor | None,
    num_rows: int,
    granule: int,
    padding_idx: int,
    include_last_offset: bool,
) -> Tensor:
    """out[l] = row of indices[l] times the gradient of its bag; 0 for padding_idx.

    Args:
        grad: gradient of the pooled rows. [G, D], dtype of values.
        values, index, indices, offsets, limit, num_rows, granule, padding_idx,
        include_last_offset: as in `lookup_bag`.

    Returns:
        [L], dtype of values.

    Raises:
        ValueError, IndexError: as `lookup_bag`.

    Deterministic: yes.
    """
    op = "lookup_bag_weights_backward"
    check_vector(op, "values", values)
    check(grad.dim() == 2, f"{op}: grad must be two-dimensional")
    width, lookups = grad.shape[1], indices.shape[0]
    check_rows(op, index, num_rows, width, granule)
    check_indices(op, indices, num_rows, index, values.shape[0])
    limit_step = check_limit(op, limit, lookups)
    bags = check_bags(op, offsets, indices, include_last_offset)
    check_like(op, "grad", grad, (bags, width), values)
    out = torch.empty((lookups,), dtype=values.dtype, device=values.device)
    if lookups == 0:
        return out
    block = columns_block(width)
    rows = rows_block(block, _TILE, lookups, values)
    with guard(values):
        weights_backward_kernel[(triton.cdiv(lookups, rows),)](
            **places(index, num_rows, width, granule, values.shape[0]),
            grad_ptr=grad,
            values_ptr=values,
            indices_ptr=indices,
            bag_ptr=bag_of_lookups(offsets, lookups, include_last_offset),
            limit_ptr=limit,
            out_ptr=out,
            lookups=lookups,
            limit_step=limit_step,
            padding_idx=padding_idx,
            WIDE=wide_type(values.dtype),
            ROWS=rows,
            BLOCK_D=block,
            **OPTIONS,
        )
    return out
