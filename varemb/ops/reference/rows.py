"""Where rows are, what they are computed in, and the checks that all operations share."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_PER_BLOCK = 24


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_indices(op: str, indices: Tensor, num_rows: int) -> None:
    bad = ((indices < 0) | (indices >= num_rows)).nonzero()
    if bad.numel():
        at = int(bad[0, 0])
        raise IndexError(
            f"{op}: indices must be in [0, {num_rows}), got {int(indices[at])} at position {at}"
        )


def stored_dims(index: Tensor, num_rows: int, granule: int) -> Tensor:  # [N] int64
    """Numbers that each row takes in the flat values."""
    units = index[:, 1:].contiguous().view(torch.uint8).reshape(-1)[:num_rows]
    return units.long() * granule


def locate(index: Tensor, rows: Tensor, width: int, granule: int) -> tuple[Tensor, Tensor]:
    """Offset and dim of each of the given rows. [n], [n] int64."""
    block, slot = rows.long() // ROWS_PER_BLOCK, rows.long() % ROWS_PER_BLOCK
    picked = index[block]  # [n, 4]
    units = picked[:, 1:].contiguous().view(torch.uint8).reshape(-1, ROWS_PER_BLOCK).long()
    before = torch.arange(ROWS_PER_BLOCK, device=rows.device) < slot[:, None]
    offset = picked[:, 0] + granule * (units * before).sum(1)
    dim = units.gather(1, slot[:, None])[:, 0] * granule
    return offset, dim.clamp(max=width)


def places_of(
    index: Tensor, indices: Tensor, limit: Tensor | None, width: int, granule: int
) -> tuple[Tensor, Tensor]:  # [L, D] int64, [L, D] bool
    """Where each column of each lookup lies in the flat values, and whether it exists."""
    offset, dim = locate(index, indices, width, granule)
    if limit is not None:
        dim = torch.minimum(dim, limit.long().clamp(min=0))
    columns = torch.arange(width, device=indices.device)
    inside = columns < dim[:, None]
    return torch.where(inside, offset[:, None] + columns, 0), inside
