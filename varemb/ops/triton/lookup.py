# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Rows of different dims as one zero-padded block."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.checks import check_indices, check_limit, check_rows, check_vector
from varemb.ops.triton.launch import OPTIONS, columns_block, guard, rows_block
from varemb.ops.triton.rows import look_up, places


@triton.jit
def lookup_kernel(
    values_ptr,  # [E]
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [L]
    limit_ptr,  # [1] or [L], or None
    out_ptr,  # [L, D]
    lookups,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes ROWS lookups; each number is read once, the columns beyond a row's dim are
    # written as zeros in the same pass. Deterministic.
    lookup = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = lookup < lookups
    _, offset, dim, is_row = look_up(
        index_ptr, indices_ptr, limit_ptr, lookup, mask, num_rows, width, granule, chunks, numbers,
        limit_step,
    )  # fmt: skip
    tl.device_assert(is_row | (lookup >= lookups), "lookup: an index is outside the table")
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = is_row[:, None] & (column < dim[:, None])
    row = tl.load(values_ptr + offset[:, None] + column, mask=inside, other=0.0)
    to = out_ptr + lookup[:, None] * width + column
    tl.store(to, row, mask=mask[:, None] & (column < width))


# Numbers in a tile: 8 per thread of four warps; compiled for sm_90 that takes 40 registers.
_TILE = 1024


def lookup(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    limit: Tensor | None,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l, k] = values[offset + k] for k < min(d[r], limit), r = indices[l]; else 0.

    Args:
        values: the numbers of all rows. [E]
        index: packed [blocks, 4] or paged [words] index, int64.
        indices: rows to read, repeats allowed. [L], int32 or int64.
        limit: numbers to read at most, for all or for each lookup. [1] or [L], int32.
        num_rows, width, granule: as in `Rows`.

    Returns:
        [L, D], dtype of values.

    Raises:
        ValueError, IndexError: the tensors do not fit together, an index is outside the table (on
            a GPU a device assert).

    Deterministic: yes.
    """
    check_vector("lookup", "values", values)
    check_rows("lookup", index, num_rows, width, granule)
    check_indices("lookup", indices, num_rows, index, values.shape[0])
    lookups = indices.shape[0]
    limit_step = check_limit("lookup", limit, lookups)
    out = torch.empty((lookups, width), dtype=values.dtype, device=values.device)
    if out.numel() == 0:
        return out
    block = columns_block(width)
    rows = rows_block(block, _TILE, lookups, values)
    with guard(values):
        lookup_kernel[(triton.cdiv(lookups, rows),)](
            **places(index, num_rows, width, granule, values.shape[0]),
            values_ptr=values,
            indices_ptr=indices,
            limit_ptr=limit,
            out_ptr=out,
            lookups=lookups,
            limit_step=limit_step,
            ROWS=rows,
            BLOCK_D=block,
            **OPTIONS,
        )
    return out
