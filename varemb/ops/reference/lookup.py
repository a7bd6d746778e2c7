"""`lookup`: rows of different dims as one zero-padded block."""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference.rows import check_indices, places_of


def lookup(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    limit: Tensor | None,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l, k] = values[offset + k] for k < min(d[r], limit), r = indices[l]; else 0. [L, D]"""
    check_indices("lookup", indices, num_rows, index, values.numel())
    places, inside = places_of(index, indices, limit, num_rows, width, granule)
    if values.numel() == 0:
        return values.new_zeros(places.shape)
    return torch.where(inside, values[places], values.new_zeros(()))
