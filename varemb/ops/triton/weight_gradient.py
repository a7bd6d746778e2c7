# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""The gradients of lookup_linear's matrices and biases, each added in the order of the lookups.

Matrices may share rows, and cells a bias: a program owns rows of the result and takes what reaches
them from every cell.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.arithmetic import dot_operand, widen
from varemb.ops.triton.launch import OPTIONS, wide_dtype, wide_type
from varemb.ops.triton.matrices import BLOCK_K, Cells, block_of, read_cell


@triton.jit
def share_of(begin, end, split, SPLITS: tl.constexpr, ROWS: tl.constexpr):
    """A program's part of a cell's lookups, in whole tiles; parts do not overlap."""
    share = (end - begin + SPLITS * ROWS - 1) // (SPLITS * ROWS) * ROWS
    begin += share * split
    return begin, tl.minimum(begin + share, end)


@triton.jit
def weight_backward_kernel(
    grad_ptr,  # [L, O]
    values_ptr,  # [E]
    groups_ptr,  # [F, D + 1, 2]
    offset_ptr,  # [L]
    order_ptr,  # [L]
    starts_ptr,  # [cells + 1]
    cells_ptr,  # [cells], by their first matrix row
    low_ptr,  # [blocks of matrix rows], the cells that may reach into each block: from here
    high_ptr,  # [blocks of matrix rows], to here
    out_ptr,  # [SPLITS, S, O]
    width,
    outputs,
    matrix_rows,
    bias_rows,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    # A program owns BLOCK_S matrix rows and BLOCK_O outputs of one of SPLITS partial sums, and adds
    # its share of the lookups of each matrix there in their order. Deterministic.
    block = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    matrix_row = block * BLOCK_S + tl.arange(0, BLOCK_S)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    is_output = (output < outputs)[None, :]
    total = tl.zeros([BLOCK_S, BLOCK_O], WIDE)
    for place in range(tl.load(low_ptr + block), tl.load(high_ptr + block)):
        cell = tl.load(cells_ptr + place)
        dim, first, _, is_good = read_cell(groups_ptr, cell, width, matrix_rows, bias_rows)
        column = matrix_row - first
        is_column = (column >= 0) & (column < dim)
        begin, end = share_of(
            tl.load(starts_ptr + cell), tl.load(starts_ptr + cell + 1), split, SPLITS, ROWS
        )
        end = tl.where(is_good & (first + dim > block * BLOCK_S), end, begin)
        for tile in range(begin, end, ROWS):
            at = tile + tl.arange(0, ROWS)
            mask = at < end
            lookup = tl.load(order_ptr + at, mask=mask, other=0)
            offset = tl.load(offset_ptr + lookup, mask=mask, other=0)
            inside = is_column[:, None] & mask[None, :]
            numbers = values_ptr + offset[None, :] + column[:, None]
            numbers = tl.load(numbers, mask=inside, other=0.0)
            grad = grad_ptr + lookup[:, None] * outputs + output[None, :]
            grad = tl.load(grad, mask=mask[:, None] & is_output, other=0.0)
            total = tl.dot(
                dot_operand(numbers), dot_operand(grad), total, input_precision="ieee",
                out_dtype=WIDE,
            )  # fmt: skip
    to = (split * matrix_rows + matrix_row)[:, None] * outputs + output[None, :]
    tl.store(out_ptr + to, total, mask=(matrix_row < matrix_rows)[:, None] & is_output)


@triton.jit
def bias_backward_kernel(
    grad_ptr,  # [L, O]
    order_ptr,  # [L]
    starts_ptr,  # [cells + 1]
    cells_ptr,  # [cells], by their bias row
    low_ptr,  # [C], the cells of each bias row: from here
    high_ptr,  # [C], to here
    out_ptr,  # [SPLITS, C, O]
    outputs,
    bias_rows,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    # A program owns BLOCK_O outputs of a bias row of one of SPLITS partial sums. Deterministic.
    bias_row = tl.program_id(0).to(tl.int64)
    split = tl.program_id(2).to(tl.int64)
    output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    total = tl.zeros([BLOCK_O], WIDE)
    for place in range(tl.load(low_ptr + bias_row), tl.load(high_ptr + bias_row)):
        cell = tl.load(cells_ptr + place)
        begin, end = share_of(
            tl.load(starts_ptr + cell), tl.load(starts_ptr + cell + 1), split, SPLITS, ROWS
        )
        for tile in range(begin, end, ROWS):
            at = tile + tl.arange(0, ROWS)
            lookup = tl.load(order_ptr + at, mask=at < end, other=0)
            inside = (at < end)[:, None] & (output < outputs)[None, :]
            grad = grad_ptr + lookup[:, None] * outputs + output[None, :]
            total += tl.sum(widen(tl.load(grad, mask=inside, other=0.0), WIDE), 0)
    to = (split * bias_rows + bias_row) * outputs + output
    tl.store(out_ptr + to, total, mask=output < outputs)


def weight_splits(lookups: int) -> int:
    """Partial sums of the weight's gradient: one program per matrix would leave most of a GPU idle
    when there are few matrices; sixteen are cheap to keep, the weight being small."""
    return 16 if lookups >= 16384 else 1


def weight_backward(
    grad: Tensor,
    values: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    cells: Cells,
    width: int,
) -> Tensor:  # [S, O]
    """The gradient of the matrices: of each, its rows' numbers times their output's gradients.

    Args: as `lookup_linear_backward`, at least one lookup and one output.

    Deterministic: yes.
    """
    matrix_rows, outputs = weight.shape
    splits = weight_splits(grad.shape[0])
    wide = wide_dtype(grad.dtype)
    if matrix_rows == 0:
        return torch.zeros_like(weight)
    sums = torch.empty((splits, matrix_rows, outputs), dtype=wide, device=grad.device)
    firsts, by_first = torch.sort(groups[:, :, 0].reshape(-1), stable=True)
    block_s, block_o = block_of(matrix_rows), block_of(outputs)
    blocks = triton.cdiv(matrix_rows, block_s)
    begins = torch.arange(blocks, device=grad.device) * block_s
    # A matrix has at most D rows; the cells without one, at -1, are left out.
    low = torch.searchsorted(firsts, (begins - width + 1).clamp(min=0))
    high = torch.searchsorted(firsts, begins + block_s)
    weight_backward_kernel[(blocks, triton.cdiv(outputs, block_o), splits)](
        grad_ptr=grad,
        values_ptr=values,
        groups_ptr=groups,
        offset_ptr=cells.offset,
        order_ptr=cells.order,
        starts_ptr=cells.starts,
        cells_ptr=by_first,
        low_ptr=low,
        high_ptr=high,
        out_ptr=sums,
        width=width,
        outputs=outputs,
        matrix_rows=matrix_rows,
        bias_rows=bias.shape[0],
        SPLITS=splits,
        WIDE=wide_type(grad.dtype),
        ROWS=BLOCK_K,
        BLOCK_S=block_s,
        BLOCK_O=block_o,
        **OPTIONS,
    )
    return sums.sum(0).to(grad.dtype)


def bias_backward(grad: Tensor, groups: Tensor, bias: Tensor, cells: Cells) -> Tensor:  # [C, O]
    """The gradient of the biases: of each, the sum of its lookups' gradients.

    Args: as `lookup_linear_backward`, at least one lookup and one output.

    Deterministic: yes.
    """
    bias_rows, outputs = bias.shape
    splits = weight_splits(grad.shape[0])
    wide = wide_dtype(grad.dtype)
    if bias_rows == 0:
        return torch.zeros_like(bias)
    sums = torch.empty((splits, bias_rows, outputs), dtype=wide, device=grad.device)
    of_cell, by_row = torch.sort(groups[:, :, 1].reshape(-1), stable=True)
    every = torch.arange(bias_rows, device=grad.device)
    block = block_of(outputs)
    bias_backward_kernel[(bias_rows, triton.cdiv(outputs, block), splits)](
        grad_ptr=grad,
        order_ptr=cells.order,
        starts_ptr=cells.starts,
        cells_ptr=by_row,
        low_ptr=torch.searchsorted(of_cell, every),
        high_ptr=torch.searchsorted(of_cell, every, right=True),
        out_ptr=sums,
        outputs=outputs,
        bias_rows=bias_rows,
        SPLITS=splits,
        WIDE=wide_type(grad.dtype),
        ROWS=BLOCK_K,
        BLOCK_O=block,
        **OPTIONS,
    )
    return sums.sum(0).to(grad.dtype)
