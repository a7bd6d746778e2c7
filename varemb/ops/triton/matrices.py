# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Lookups grouped by the matrix they are multiplied with, in tiles of one matrix each.

A cell is a field and a dim, F * (D + 1) in all: what `groups` has a matrix and a bias row for.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.checks import check, check_indices, check_rows, check_vector
from varemb.ops.triton.launch import OPTIONS, columns_block, guard, rows_block
from varemb.ops.triton.rows import look_up, places

# Lookups in a tile, and numbers that a product adds at a time. A float32 product keeps its operands
# in registers: 64 x 16 times 16 x 32 takes 168 of them, twice as wide a product spills. tl.dot
# takes no fewer than 16.
TILE = 64
BLOCK_K = 16
_MOST, _LEAST = 32, 16


class Cells(NamedTuple):
    """The lookups of a call sorted by cell, and the tiles that they make."""

    offset: Tensor  # [L] int64, where each lookup's row begins in the flat values
    order: Tensor  # [L] int64, the lookups by cell
    starts: Tensor  # [cells + 1] int64, where each cell begins in order
    tile_cell: Tensor  # [tiles] int64
    tile_begin: Tensor  # [tiles] int64, in order
    tile_end: Tensor  # [tiles] int64; its begin for a tile that is not needed


@triton.jit
def lookup_cells_kernel(
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [L]
    cell_ptr,  # [L]
    offset_ptr,  # [L]
    lookups,
    fields,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    ROWS: tl.constexpr,
):
    # A program takes ROWS lookups and reads the index for each once. Deterministic.
    lookup = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = lookup < lookups
    _, offset, dim, is_row = look_up(
        index_ptr, indices_ptr, None, lookup, mask, num_rows, width, granule, chunks, numbers, 0
    )
    tl.device_assert(is_row | (lookup >= lookups), "lookup_linear: an index is outside the table")
    cell = (lookup % fields) * (width + 1) + dim
    tl.store(cell_ptr + lookup, cell.to(tl.int32), mask=mask)
    tl.store(offset_ptr + lookup, offset, mask=mask)


@triton.jit
def read_cell(groups_ptr, cell, width, matrix_rows, bias_rows):
    """Dim, first matrix row and bias row of a cell, and whether it has them."""
    dim = (cell % (width + 1)).to(tl.int32)
    first = tl.load(groups_ptr + cell * 2)
    group = tl.load(groups_ptr + cell * 2 + 1)
    has_matrix = (first >= 0) & (first + dim <= matrix_rows)
    return dim, first, group, has_matrix & (group >= 0) & (group < bias_rows)


def block_of(size: int) -> int:
    """Columns, outputs or matrix rows that a product takes at a time."""
    return min(_MOST, max(_LEAST, columns_block(size)))


def check_linear(
    op: str,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> None:
    """The part of the contract that the two directions share.

    Raises:
        ValueError, IndexError: the tensors do not fit together, an index is outside the table.
    """
    check_vector(op, "values", values)
    check_rows(op, index, num_rows, width, granule)
    check_indices(op, indices, num_rows, index, values.shape[0])
    check(
        groups.dtype == torch.int64
        and groups.dim() == 3
        and groups.is_contiguous()
        and groups.shape[0] > 0
        and tuple(groups.shape[1:]) == (width + 1, 2),
        f"{op}: groups must be a contiguous int64 tensor [fields, width + 1, 2]",
    )
    check(groups.shape[0] * (width + 1) < 2**31, f"{op}: at most 2^31 - 1 fields times dims")
    check(
        weight.dim() == 2
        and weight.is_contiguous()
        and bias.dim() == 2
        and bias.is_contiguous()
        and weight.shape[1] == bias.shape[1],
        f"{op}: weight [S, O] and bias [C, O] must be contiguous, with the same O",
    )
    check(
        weight.dtype == values.dtype and bias.dtype == values.dtype,
        f"{op}: weight and bias must have the dtype of values",
    )


def _check_matrices(cell: Tensor, groups: Tensor) -> None:
    """Every row has a matrix; in the interpreter only."""
    if groups.is_cuda:
        return
    bad = (groups.reshape(-1, 2)[cell.long(), 1] < 0).nonzero()
    if bad.numel():
        field, dim = divmod(int(cell[bad[0, 0]]), groups.shape[1])
        raise ValueError(f"lookup_linear: no matrix for rows of dim {dim} in field {field}")


def sort_by_cell(
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    num_rows: int,
    width: int,
    granule: int,
    numbers: int,
) -> Cells:
    """The cells of a call with at least one lookup.

    Args: as `lookup_linear`; numbers is the length of the flat values.

    Raises:
        ValueError: a row has no matrix; in the interpreter only.

    Deterministic: yes, the sort is stable.
    """
    lookups, device = indices.shape[0], indices.device
    cell = torch.empty(lookups, dtype=torch.int32, device=device)
    offset = torch.empty(lookups, dtype=torch.int64, device=device)
    # 32 bytes of index per lookup
    rows = rows_block(32, 4096, lookups, indices)
    with guard(indices):
        lookup_cells_kernel[(triton.cdiv(lookups, rows),)](
            **places(index, num_rows, width, granule, numbers),
            indices_ptr=indices,
            cell_ptr=cell,
            offset_ptr=offset,
            lookups=lookups,
            fields=groups.shape[0],
            ROWS=rows,
            **OPTIONS,
        )
    _check_matrices(cell, groups)
    keys, order = torch.sort(cell, stable=True)
    cells = groups.shape[0] * groups.shape[1]
    every = torch.arange(cells + 1, dtype=torch.int32, device=device)
    starts = torch.searchsorted(keys, every)
    return Cells(offset, order, starts, *_make_tiles(starts, lookups))


def _make_tiles(starts: Tensor, lookups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Cell, begin and end of each tile. How many there are only the device knows, so there are as
    many as there can be: each cell may leave one tile unfilled."""
    cells = starts.shape[0] - 1
    most = min(lookups, triton.cdiv(lookups, TILE) + cells)
    tiles = (starts.diff() + TILE - 1) // TILE  # [cells]
    ends = tiles.cumsum(0)
    tile = torch.arange(most, device=starts.device)
    cell = torch.searchsorted(ends, tile, right=True)
    is_needed = cell < cells
    cell = cell.clamp(max=cells - 1)
    begin = starts[cell] + (tile - (ends - tiles)[cell]) * TILE
    end = torch.minimum(begin + TILE, starts[cell + 1])
    return cell, begin, torch.where(is_needed, end, begin)
