# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Optimizers on the touched numbers: each is read and written once, its state beside it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops import reference
from varemb.ops.triton.arithmetic import widen
from varemb.ops.triton.checks import check, check_like, check_rows, check_vector
from varemb.ops.triton.gradient import Gradient, Sink
from varemb.ops.triton.launch import (
    OPTIONS,
    columns_block,
    guard,
    programs_limit,
    rows_block,
    wide_dtype,
    wide_type,
)
from varemb.ops.triton.rows import row_at
from varemb.ops.triton.rules import ADAM, ROW_WISE_ADAGRAD, SGD, apply_rule
from varemb.ops.triton.sort import find_runs
from varemb.ops.triton.terms import Call, check_call


@triton.jit
def update_numbers_kernel(
    values_ptr,  # [E]
    state1_ptr,  # [E], or None
    state2_ptr,  # [E], or None
    hyper_ptr,  # [6]
    rounding_ptr,  # [2], or None
    positions_ptr,  # [n]
    grad_ptr,  # [n]
    count,
    numbers,
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    # A program takes ROWS touched numbers, whatever rows they are of. Deterministic.
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = at < count
    place = tl.load(positions_ptr + at, mask=mask, other=0)
    inside = mask & (place >= 0) & (place < numbers)
    tl.device_assert(inside | (at >= count), "update: a position is outside the table")
    grad = widen(tl.load(grad_ptr + at, mask=inside, other=0.0), WIDE)
    apply_rule(
        values_ptr, state1_ptr, state2_ptr, hyper_ptr, rounding_ptr, place, inside, grad, place,
        inside, ALGORITHM, WIDE,
    )  # fmt: skip


@triton.jit
def rows_of_positions_kernel(
    index_ptr,  # [blocks, 4]
    positions_ptr,  # [n]
    row_ptr,  # [n]
    count,
    numbers,
    num_rows,
    granule,
    BLOCK_STEPS: tl.constexpr,
    ROWS: tl.constexpr,
):
    # A program finds the rows of ROWS touched numbers. Deterministic.
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = at < count
    place = tl.load(positions_ptr + at, mask=mask, other=0)
    inside = mask & (place >= 0) & (place < numbers)
    tl.device_assert(inside | (at >= count), "update: a position is outside the table")
    row = row_at(index_ptr, place, inside, num_rows, granule, BLOCK_STEPS)
    tl.store(row_ptr + at, tl.where(inside, row, num_rows), mask=mask)


@triton.jit
def update_rows_kernel(
    values_ptr,  # [E]
    state1_ptr,  # [N]
    hyper_ptr,  # [6]
    rounding_ptr,  # [2], or None
    positions_ptr,  # [n]
    grad_ptr,  # [n]
    row_ptr,  # [n]
    before_ptr,  # [n + 1]
    starts_ptr,  # [n + 1]
    count,
    num_rows,
    width,
    ALGORITHM: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # The programs share the touched rows, ROWS at a time; how many there are only the device knows.
    # Deterministic.
    step = tl.num_programs(0).to(tl.int64) * ROWS
    last = tl.load(before_ptr + count)
    column = tl.arange(0, BLOCK_D)[None, :]
    for tile in range(tl.program_id(0).to(tl.int64) * ROWS, last, step):
        run = tile + tl.arange(0, ROWS)  # [ROWS]
        begin = tl.load(starts_ptr + run, mask=run < last, other=0)
        end = tl.load(starts_ptr + run + 1, mask=run < last, other=0)
        row = tl.load(row_ptr + begin, mask=run < last, other=num_rows)
        is_row = (run < last) & (row < num_rows) & (end - begin <= width)
        tl.device_assert(is_row | (run >= last), "update: positions are not those of rows")
        trained = tl.where(is_row, end - begin, 0)
        inside = column < trained[:, None]
        at = begin[:, None] + column
        place = tl.load(positions_ptr + at, mask=inside, other=0)
        grad = widen(tl.load(grad_ptr + at, mask=inside, other=0.0), WIDE)
        apply_rule(
            values_ptr, state1_ptr, None, hyper_ptr, rounding_ptr, place, inside, grad, row,
            trained, ALGORITHM, WIDE,
        )  # fmt: skip


# Numbers in a tile: 4 per thread of four warps, beside as many of each state.
_TILE = 512


def check_state(
    op: str,
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    num_rows: int,
    algorithm: int,
) -> None:
    """The part of the contract that both updates share.

    Raises:
        ValueError: a state is missing, unknown or does not fit the values.
    """
    check_vector(op, "values", values)
    check(algorithm in range(SGD, ADAM + 1), f"{op}: unknown algorithm {algorithm}")
    check_like(op, "hyper", hyper, (6,), values.new_empty(0, dtype=torch.float64))
    numbers = values.shape[0]
    size1 = num_rows if algorithm == ROW_WISE_ADAGRAD else numbers
    states = (
        ("state1", state1, algorithm != SGD, size1),
        ("state2", state2, algorithm == ADAM, numbers),
    )
    wide = values.new_empty(0, dtype=wide_dtype(values.dtype))
    for name, state, is_needed, size in states:
        problem = "is missing" if is_needed else "does not belong to this optimizer"
        check((state is not None) == is_needed, f"{op}: {name} {problem}")
        if state is not None:
            check(
                state.shape == (size,),
                f"{op}: {name} must have {size} numbers, got {list(state.shape)}",
            )
            check_like(op, name, state, (size,), wide)
    if rounding is not None:
        name = str(values.dtype).removeprefix("torch.")
        check(
            values.dtype in (torch.float16, torch.bfloat16),
            f"{op}: rounding needs values of float16 or bfloat16, got {name}",
        )
        check_like(op, "rounding", rounding, (2,), values.new_empty(0, dtype=torch.int64))


def _check_positions(positions: Tensor, numbers: int) -> None:
    """Distinct, ascending and inside the table; in the interpreter only."""
    if positions.is_cuda or positions.shape[0] == 0:
        return
    is_inside = int(positions[0]) >= 0 and int(positions[-1]) < numbers
    check(
        is_inside and bool((positions.diff() > 0).all()),
        f"update: positions must be distinct, ascending and in [0, {numbers})",
    )


def update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    index: Tensor,
    positions: Tensor,
    grad: Tensor,
    num_rows: int,
    width: int,
    granule: int,
    algorithm: int,
) -> None:
    """One optimizer step on the numbers at `positions`; nothing else changes.

    Args:
        values: the numbers of all rows, changed. [E]
        state1: Adagrad's sum of squares or Adam's mean [E]; row-wise Adagrad's [N]; float32, or
            float64 for float64 values. Changed.
        state2: Adam's mean of squares, changed. [E]
        hyper: lr, weight_decay, eps, beta1, beta2, step. [6], float64.
        rounding: seed and offset of stochastic rounding. [2], int64, or None.
        index: packed index. [blocks, 4], int64.
        positions: places of the touched numbers, distinct and ascending. [n], int64.
        grad: their gradients. [n], dtype of values.
        num_rows, width, granule: as in `Rows`.
        algorithm: 0 SGD, 1 Adagrad, 2 row-wise Adagrad, 3 Adam.

    Raises:
        ValueError: the tensors do not fit together.

    Deterministic: yes.
    """
    op = "update"
    check_state(op, values, state1, state2, hyper, rounding, num_rows, algorithm)
    reference.refuse_paged(op, index)
    check_rows(op, index, num_rows, width, granule)
    check_vector(op, "positions", positions)
    check(positions.dtype == torch.int64, f"{op}: positions must be int64")
    check_like(op, "grad", grad, tuple(positions.shape), values)
    _check_positions(positions, values.shape[0])
    count = positions.shape[0]
    if count == 0:
        return
    if algorithm == ROW_WISE_ADAGRAD:
        assert state1 is not None
        _update_rows(
            values, state1, hyper, rounding, index, positions, grad, num_rows, width, granule
        )
        return
    rows = rows_block(1, 1024, count, values)
    with guard(values):
        update_numbers_kernel[(triton.cdiv(count, rows),)](
            values_ptr=values,
            state1_ptr=state1,
            state2_ptr=state2,
            hyper_ptr=hyper,
            rounding_ptr=rounding,
            positions_ptr=positions,
            grad_ptr=grad,
            count=count,
            numbers=values.shape[0],
            ALGORITHM=algorithm,
            WIDE=wide_type(values.dtype),
            ROWS=rows,
            **OPTIONS,
        )


def _update_rows(
    values: Tensor,
    state1: Tensor,
    hyper: Tensor,
    rounding: Tensor | None,
    index: Tensor,
    positions: Tensor,
    grad: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> None:
    """Row-wise Adagrad: the touched numbers are grouped by row first. Deterministic: yes."""
    count = positions.shape[0]
    row = torch.empty(count, dtype=torch.int64, device=values.device)
    rows = rows_block(1, 1024, count, values)
    with guard(values):
        rows_of_positions_kernel[(triton.cdiv(count, rows),)](
            index_ptr=index,
            positions_ptr=positions,
            row_ptr=row,
            count=count,
            numbers=values.shape[0],
            num_rows=num_rows,
            granule=granule,
            BLOCK_STEPS=index.shape[0].bit_length(),
            ROWS=rows,
            **OPTIONS,
        )
        before, starts = find_runs(row)
        block = columns_block(width)
        rows = rows_block(block, _TILE, count, values)
        programs = min(triton.cdiv(count, rows), programs_limit(values))
        update_rows_kernel[(programs,)](
            values_ptr=values,
            state1_ptr=state1,
            hyper_ptr=hyper,
            rounding_ptr=rounding,
            positions_ptr=positions,
            grad_ptr=grad,
            row_ptr=row,
            before_ptr=before,
            starts_ptr=starts,
            count=count,
            num_rows=num_rows,
            width=width,
            ALGORITHM=ROW_WISE_ADAGRAD,
            WIDE=wide_type(values.dtype),
            ROWS=rows,
            BLOCK_D=block,
            **OPTIONS,
        )


def coalesce_update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    grad: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    limit: Tensor | None,
    winners: Tensor | None,
    num_rows: int,
    granule: int,
    pooling: int,
    padding_idx: int,
    include_last_offset: bool,
    algorithm: int,
) -> None:
    """`coalesce`, then `update_`, in one pass: no gradient is stored, sums stay in the wide dtype.

    Args: as `update_` and `coalesce_dense`.

    Raises:
        ValueError, IndexError: as `update_` and `coalesce_dense`.

    Deterministic: yes, as `coalesce_dense`.
    """
    op = "coalesce_update"
    check_state(op, values, state1, state2, hyper, rounding, num_rows, algorithm)
    check(grad.dtype == values.dtype, f"{op}: grad must have the dtype of values")
    call = Call(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule,
        pooling, padding_idx, include_last_offset,
    )  # fmt: skip
    if indices.shape[0] == 0:
        check_call(op, call, values.shape[0])
        return
    Gradient(op, call, values.shape[0]).sum_into(
        Sink(
            values,
            state1=state1,
            state2=state2,
            hyper=hyper,
            rounding=rounding,
            algorithm=algorithm,
        )
    )
