# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Sums of runs that are longer than a window of the sorted order.

A window is added by a program of its own, and a run's windows in their order: deterministic,
whatever runs when.
"""

import triton
import triton.language as tl

from varemb.ops.triton.rows import locate
from varemb.ops.triton.rules import finish_rows
from varemb.ops.triton.terms import load_terms


@triton.jit
def run_in_window(before_ptr, starts_ptr, keys_ptr, at, num_rows, CLASSES, LONGEST: tl.constexpr):
    """The run at a place of the order: its bounds and row, and whether it is long."""
    run = tl.load(before_ptr + at + 1) - 1
    begin, end = tl.load(starts_ptr + run), tl.load(starts_ptr + run + 1)
    key = tl.load(keys_ptr + at).to(tl.int64)
    # Not num_rows * CLASSES, which may be more than the 32 bits num_rows comes in.
    is_long = (end - begin > LONGEST) & (key // CLASSES < num_rows)
    return run, begin, end, key % num_rows, is_long


@triton.jit
def sum_windows_kernel(
    grad_ptr,  # [L, D] or [G, D]
    index_ptr,  # [blocks, 4] or [words]
    order_ptr,  # [L]
    keys_ptr,  # [L]
    before_ptr,  # [L + 1]
    starts_ptr,  # [L + 1]
    bag_ptr,  # [L], or None
    weights_ptr,  # [L], or None
    scales_ptr,  # [G], or None
    limit_ptr,  # [1] or [L], or None
    winners_ptr,  # [G, D], or None
    sums_ptr,  # [2 * windows, D]
    reach_ptr,  # [2 * windows]
    lookups,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    CLASSES: tl.constexpr,
    LONGEST: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes a window of LONGEST places of the order. A long run crosses its edges, so it
    # holds at most two: piece 0 of one that began before, piece 1 of one that goes on.
    window = tl.program_id(0).to(tl.int64)
    window_begin = window * LONGEST
    window_end = tl.minimum(window_begin + LONGEST, lookups)
    column = tl.arange(0, BLOCK_D)
    for piece in tl.static_range(2):
        at = window_begin if piece == 0 else window_end - 1
        _, begin, end, row, is_long = run_in_window(
            before_ptr, starts_ptr, keys_ptr, at, num_rows, CLASSES, LONGEST
        )
        is_head = begin >= window_begin
        is_long = is_long & (~is_head if piece == 0 else is_head)
        begin = tl.maximum(begin, window_begin)
        end = tl.where(is_long, tl.minimum(end, window_end), begin)
        rows = row + tl.zeros([ROWS], tl.int64)
        _, dim = locate(index_ptr, rows, rows >= 0, num_rows, width, granule, chunks, numbers)
        total = tl.zeros([BLOCK_D], WIDE)
        reach = tl.zeros([ROWS], tl.int32)
        for chunk in range(begin, end, ROWS):
            place = chunk + tl.arange(0, ROWS)
            terms, term_reach = load_terms(
                grad_ptr, order_ptr, bag_ptr, weights_ptr, scales_ptr, limit_ptr, winners_ptr,
                width, limit_step, place, place < end, dim, WIDE, BLOCK_D,
            )  # fmt: skip
            total += tl.sum(terms, 0)
            reach = tl.maximum(reach, term_reach)
        to = window * 2 + piece
        tl.store(sums_ptr + to * width + column, total, mask=column < tl.where(is_long, width, 0))
        tl.store(reach_ptr + to, tl.max(reach, 0), mask=is_long)


@triton.jit
def finish_windows_kernel(
    index_ptr,  # [blocks, 4] or [words]
    keys_ptr,  # [L]
    before_ptr,  # [L + 1]
    starts_ptr,  # [L + 1]
    sums_ptr,  # [2 * windows, D]
    reach_ptr,  # [2 * windows]
    out_ptr,  # the sink, as in finish_rows
    positions_ptr,
    first_ptr,
    state1_ptr,
    state2_ptr,
    hyper_ptr,
    rounding_ptr,
    lookups,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    CLASSES: tl.constexpr,
    LONGEST: tl.constexpr,
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes a window; if a long run begins in it, it adds the run's pieces, ROWS at a time
    # in a fixed order: piece 1 of this window, piece 0 of those that follow.
    window = tl.program_id(0).to(tl.int64)
    window_begin = window * LONGEST
    at = tl.minimum(window_begin + LONGEST, lookups) - 1
    run, begin, end, row, is_long = run_in_window(
        before_ptr, starts_ptr, keys_ptr, at, num_rows, CLASSES, LONGEST
    )
    is_long = is_long & (begin >= window_begin)
    pieces = tl.where(is_long, (end - 1) // LONGEST - window + 1, 0)
    column = tl.arange(0, BLOCK_D)
    total = tl.zeros([BLOCK_D], WIDE)
    reach = tl.zeros([ROWS], tl.int32)
    for chunk in range(0, pieces, ROWS):
        piece = chunk + tl.arange(0, ROWS)  # [ROWS]
        mask = piece < pieces
        source = (window + piece) * 2 + (piece == 0).to(tl.int64)
        inside = mask[:, None] & (column < width)[None, :]
        from_column = source[:, None] * width + column[None, :]
        total += tl.sum(tl.load(sums_ptr + from_column, mask=inside, other=0.0), 0)
        reach = tl.maximum(reach, tl.load(reach_ptr + source, mask=mask, other=0))
    one = tl.zeros([1], tl.int64)
    offset, dim = locate(
        index_ptr, one + row, (one + pieces) > 0, num_rows, width, granule, chunks, numbers
    )
    if chunks is not None:
        tl.device_assert(dim >= 0, "coalesce: the table has no row of an index")
    finish_rows(
        out_ptr, positions_ptr, first_ptr, state1_ptr, state2_ptr, hyper_ptr, rounding_ptr,
        total[None, :], one + run, one + row, offset, tl.max(reach, 0) + one.to(tl.int32),
        ALGORITHM, WIDE, BLOCK_D,
    )  # fmt: skip
