# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Rows of different dims times the matrix of their group, plus a bias: every row comes out O wide.

Products of 16-bit numbers are added in float32; float32 products are not rounded to fewer bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.arithmetic import dot_operand, narrow, widen
from varemb.ops.triton.checks import check_like
from varemb.ops.triton.launch import OPTIONS, guard, wide_type
from varemb.ops.triton.matrices import (
    BLOCK_K,
    TILE,
    Cells,
    block_of,
    check_linear,
    read_cell,
    sort_by_cell,
)
from varemb.ops.triton.weight_gradient import bias_backward, weight_backward


@triton.jit
def lookup_linear_kernel(
    values_ptr,  # [E]
    groups_ptr,  # [F, D + 1, 2]
    weight_ptr,  # [S, O]
    bias_ptr,  # [C, O]
    offset_ptr,  # [L]
    order_ptr,  # [L]
    tile_cell_ptr,  # [tiles]
    tile_begin_ptr,  # [tiles]
    tile_end_ptr,  # [tiles]
    out_ptr,  # [L, O]
    width,
    outputs,
    matrix_rows,
    bias_rows,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_O: tl.constexpr,
):
    # A program takes a tile of lookups of one matrix and BLOCK_O outputs; it gathers the rows'
    # numbers straight into the product. Deterministic.
    tile = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(tile_begin_ptr + tile), tl.load(tile_end_ptr + tile)
    if begin < end:
        cell = tl.load(tile_cell_ptr + tile)
        dim, first, group, is_good = read_cell(groups_ptr, cell, width, matrix_rows, bias_rows)
        tl.device_assert(is_good, "lookup_linear: a row has no matrix")
        at = begin + tl.arange(0, ROWS)
        mask = at < tl.where(is_good, end, begin)
        lookup = tl.load(order_ptr + at, mask=mask, other=0)
        offset = tl.load(offset_ptr + lookup, mask=mask, other=0)
        output = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
        is_output = (output < tl.where(is_good, outputs, 0))[None, :]
        total = tl.zeros([ROWS, BLOCK_O], WIDE)
        for k in range(0, dim, BLOCK_K):
            column = k + tl.arange(0, BLOCK_K)
            inside = mask[:, None] & (column < dim)[None, :]
            numbers = tl.load(values_ptr + offset[:, None] + column, mask=inside, other=0.0)
            matrix = weight_ptr + (first + column)[:, None] * outputs + output[None, :]
            matrix = tl.load(matrix, mask=(column < dim)[:, None] & is_output, other=0.0)
            total = tl.dot(
                dot_operand(numbers), dot_operand(matrix), total, input_precision="ieee",
                out_dtype=WIDE,
            )  # fmt: skip
        bias = tl.load(bias_ptr + group * outputs + output[None, :], mask=is_output, other=0.0)
        total += widen(bias, WIDE)
        to = lookup[:, None] * outputs + output[None, :]
        tl.store(
            out_ptr + to, narrow(total, out_ptr.dtype.element_ty), mask=mask[:, None] & is_output
        )


@triton.jit
def rows_backward_kernel(
    grad_ptr,  # [L, O]
    groups_ptr,  # [F, D + 1, 2]
    weight_ptr,  # [S, O]
    order_ptr,  # [L]
    tile_cell_ptr,  # [tiles]
    tile_begin_ptr,  # [tiles]
    tile_end_ptr,  # [tiles]
    out_ptr,  # [L, D]
    width,
    outputs,
    matrix_rows,
    bias_rows,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes a tile of lookups of one matrix and BLOCK_D columns of their rows; columns
    # beyond the dim are written as zeros. Deterministic.
    tile = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(tile_begin_ptr + tile), tl.load(tile_end_ptr + tile)
    if begin < end:
        cell = tl.load(tile_cell_ptr + tile)
        dim, first, _, is_good = read_cell(groups_ptr, cell, width, matrix_rows, bias_rows)
        tl.device_assert(is_good, "lookup_linear: a row has no matrix")
        at = begin + tl.arange(0, ROWS)
        mask = at < tl.where(is_good, end, begin)
        lookup = tl.load(order_ptr + at, mask=mask, other=0)
        column = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
        is_column = (column < tl.where(is_good, dim, 0))[None, :]
        total = tl.zeros([ROWS, BLOCK_D], WIDE)
        for k in range(0, outputs, BLOCK_K):
            output = k + tl.arange(0, BLOCK_K)
            is_output = output < outputs
            grad = grad_ptr + lookup[:, None] * outputs + output[None, :]
            grad = tl.load(grad, mask=mask[:, None] & is_output[None, :], other=0.0)
            matrix = weight_ptr + (first + column)[None, :] * outputs + output[:, None]
            matrix = tl.load(matrix, mask=is_output[:, None] & is_column, other=0.0)
            total = tl.dot(
                dot_operand(grad), dot_operand(matrix), total, input_precision="ieee",
                out_dtype=WIDE,
            )  # fmt: skip
        to = out_ptr + lookup[:, None] * width + column[None, :]
        inside = mask[:, None] & (column < width)[None, :]
        tl.store(to, narrow(total, out_ptr.dtype.element_ty), mask=inside)


def _tiles(cells: Cells) -> dict[str, Tensor]:
    return {
        "order_ptr": cells.order,
        "tile_cell_ptr": cells.tile_cell,
        "tile_begin_ptr": cells.tile_begin,
        "tile_end_ptr": cells.tile_end,
    }


def lookup_linear(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l] = row @ weight[first : first + d] + bias[group] of the row's field and dim.

    Args:
        values: the numbers of all rows. [E]
        index: packed [blocks, 4] or paged [words] index, int64.
        indices: rows to read, repeats allowed, of field l mod F. [L], int32 or int64.
        groups: first matrix row and bias row of each field and dim. [F, D + 1, 2], int64.
        weight: the matrices, one below the other. [S, O], dtype of values.
        bias: [C, O], dtype of values.
        num_rows, width, granule: as in `Rows`.

    Returns:
        [L, O], dtype of values.

    Raises:
        ValueError, IndexError: the tensors do not fit together, an index is outside the table or a
            row has no matrix (on a GPU a device assert).

    Deterministic: yes.
    """
    op = "lookup_linear"
    check_linear(op, values, index, indices, groups, weight, bias, num_rows, width, granule)
    lookups, outputs = indices.shape[0], weight.shape[1]
    out = torch.empty((lookups, outputs), dtype=values.dtype, device=values.device)
    if out.numel() == 0:
        return out
    cells = sort_by_cell(index, indices, groups, num_rows, width, granule, values.shape[0])
    block = block_of(outputs)
    grid = (cells.tile_cell.shape[0], triton.cdiv(outputs, block))
    with guard(values):
        lookup_linear_kernel[grid](
            values_ptr=values,
            groups_ptr=groups,
            weight_ptr=weight,
            bias_ptr=bias,
            offset_ptr=cells.offset,
            **_tiles(cells),
            out_ptr=out,
            width=width,
            outputs=outputs,
            matrix_rows=weight.shape[0],
            bias_rows=bias.shape[0],
            WIDE=wide_type(values.dtype),
            ROWS=TILE,
            BLOCK_K=BLOCK_K,
            BLOCK_O=block,
            **OPTIONS,
        )
    return out


def lookup_linear_backward(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the looked-up rows, of weight and of bias.

    Args:
        grad: gradient of the output. [L, O], dtype of values.
        values, index, indices, groups, weight, bias, num_rows, width, granule: as in
            `lookup_linear`.

    Returns:
        [L, D], [S, O], [C, O], dtype of values.

    Raises:
        ValueError, IndexError: as `lookup_linear`.

    Deterministic: yes.
    """
    op = "lookup_linear_backward"
    check_linear(op, values, index, indices, groups, weight, bias, num_rows, width, granule)
    lookups, outputs = indices.shape[0], weight.shape[1]
    check_like(op, "grad", grad, (lookups, outputs), values)
    rows_grad = torch.empty((lookups, width), dtype=values.dtype, device=values.device)
    if lookups == 0 or outputs == 0:
        return rows_grad.zero_(), torch.zeros_like(weight), torch.zeros_like(bias)
    cells = sort_by_cell(index, indices, groups, num_rows, width, granule, values.shape[0])
    block = block_of(width)
    grid = (cells.tile_cell.shape[0], triton.cdiv(width, block))
    with guard(values):
        if width:
            rows_backward_kernel[grid](
                grad_ptr=grad,
                groups_ptr=groups,
                weight_ptr=weight,
                **_tiles(cells),
                out_ptr=rows_grad,
                width=width,
                outputs=outputs,
                matrix_rows=weight.shape[0],
                bias_rows=bias.shape[0],
                WIDE=wide_type(values.dtype),
                ROWS=TILE,
                BLOCK_K=BLOCK_K,
                BLOCK_D=block,
                **OPTIONS,
            )
        weight_grad = weight_backward(grad, values, groups, weight, bias, cells, width)
        bias_grad = bias_backward(grad, groups, bias, cells)
    return rows_grad, weight_grad, bias_grad
