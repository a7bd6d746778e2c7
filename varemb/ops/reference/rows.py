"""Where rows are, what they are computed in, and the checks that all operations share."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_PER_BLOCK = 24  # of the packed layout
SLOT_BITS = 8  # a paged handle is chunk << 8 | slot
DIM_BITS = 12  # a chunk word is base << 12 | dim


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def is_paged(index: Tensor) -> bool:
    """Whether an index is of the paged layout: one word a chunk, not blocks of words."""
    return index.dim() == 1


def refuse_paged(op: str, index: Tensor) -> None:
    """Raises ValueError: the sparse form needs rows that stand in table order."""
    if is_paged(index):
        raise ValueError(
            f"{op}: a paged table has no sparse gradients: use a fused optimizer or sparse=False"
        )


def check_indices(op: str, indices: Tensor, num_rows: int, index: Tensor, numbers: int) -> None:
    """Raises IndexError for a row outside the table, or one that a paged table does not have."""
    bad = ((indices < 0) | (indices >= num_rows)).nonzero()
    if bad.numel():
        at = int(bad[0, 0])
        raise IndexError(
            f"{op}: indices must be in [0, {num_rows}), got {int(indices[at])} at position {at}"
        )
    if not is_paged(index):
        return
    offset, dim = _locate_paged(index, indices, num_rows)
    absent = ((dim < 0) | (offset + dim > numbers)).nonzero()
    if absent.numel():
        at = int(absent[0, 0])
        raise IndexError(
            f"{op}: indices must be rows that the table has, got {int(indices[at])} "
            f"at position {at}, which is absent"
        )


def stored_dims(index: Tensor, num_rows: int, granule: int) -> Tensor:  # [N] int64
    """Numbers that each row takes in the flat values; absent rows take 0."""
    if is_paged(index):
        return _locate_paged(index, torch.arange(num_rows, device=index.device), num_rows)[1].clamp(
            min=0
        )
    units = index[:, 1:].contiguous().view(torch.uint8).reshape(-1)[:num_rows]
    return units.long() * granule


def rows_at(index: Tensor, positions: Tensor, num_rows: int, granule: int) -> Tensor:
    """The rows that hold the numbers at some places of the flat values. [n] -> [n] int64"""
    if not is_paged(index):
        ends = stored_dims(index, num_rows, granule).cumsum(0)
        return torch.searchsorted(ends, positions, right=True)
    offset, dim = _locate_paged(index, torch.arange(num_rows, device=index.device), num_rows)
    rows = (dim > 0).nonzero()[:, 0]
    starts, order = offset[rows].sort()
    return rows[order][torch.searchsorted(starts, positions, right=True) - 1]


def locate(
    index: Tensor, rows: Tensor, num_rows: int, width: int, granule: int
) -> tuple[Tensor, Tensor]:
    """Offset and dim of each of the given rows; an absent row has dim -1. [n], [n] int64."""
    if is_paged(index):
        offset, dim = _locate_paged(index, rows, num_rows)
        return offset, dim.clamp(max=width)
    block, slot = rows.long() // ROWS_PER_BLOCK, rows.long() % ROWS_PER_BLOCK
    picked = index[block]  # [n, 4]
    units = picked[:, 1:].contiguous().view(torch.uint8).reshape(-1, ROWS_PER_BLOCK).long()
    before = torch.arange(ROWS_PER_BLOCK, device=rows.device) < slot[:, None]
    offset = picked[:, 0] + granule * (units * before).sum(1)
    dim = units.gather(1, slot[:, None])[:, 0] * granule
    return offset, dim.clamp(max=width)


def _locate_paged(index: Tensor, rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Offset and dim: base + slot * dim of the chunk that the handle names; absent 0 and -1."""
    handle_words = -(-num_rows // 2)
    words = index[handle_words:]  # [chunks]
    handle = index[:handle_words].view(torch.int32)[rows.long()].long() & 0xFFFFFFFF
    chunk, slot = handle >> SLOT_BITS, handle & ((1 << SLOT_BITS) - 1)
    absent = chunk >= words.shape[0]
    word = torch.cat([words, words.new_zeros(1)])[chunk.clamp(max=words.shape[0])]
    dim = word & ((1 << DIM_BITS) - 1)
    offset = (word >> DIM_BITS) + slot * dim
    return offset.masked_fill(absent, 0), dim.masked_fill(absent, -1)


def places_of(
    index: Tensor, indices: Tensor, limit: Tensor | None, num_rows: int, width: int, granule: int
) -> tuple[Tensor, Tensor]:  # [L, D] int64, [L, D] bool
    """Where each column of each lookup lies in the flat values, and whether it exists."""
    offset, dim = locate(index, indices, num_rows, width, granule)
    if limit is not None:
        dim = torch.minimum(dim, limit.long().clamp(min=0))
    columns = torch.arange(width, device=indices.device)
    inside = columns < dim[:, None]
    return torch.where(inside, offset[:, None] + columns, 0), inside
