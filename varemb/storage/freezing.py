"""Packed tables from paged ones and back."""

from __future__ import annotations

import numpy as np
import torch

from varemb.storage.base import Storage
from varemb.storage.moves import Mover, parts
from varemb.storage.packed import PackedStorage
from varemb.storage.paged import PagedStorage


@torch.no_grad()
def freeze(paged: PagedStorage, *, backend: str | None = None) -> PackedStorage:
    """A packed table with the same rows; absent rows get a dim of 0."""
    packed = PackedStorage(
        paged.dims[: paged.next_row],
        paged.width,
        device=paged.weight.device,
        dtype=paged.weight.dtype,
    )
    _copy_rows(paged, packed, backend)
    return packed


@torch.no_grad()
def thaw(
    packed: PackedStorage,
    *,
    sizes: tuple[int, ...] | None = None,
    reserve_rows: int | None = None,
    reserve_numbers: int | None = None,
    backend: str | None = None,
) -> PagedStorage:
    """A paged table with the rows of a packed one. Args: as `PagedStorage`."""
    paged = PagedStorage(
        packed.dims,
        packed.width,
        sizes=sizes,
        reserve_rows=reserve_rows,
        reserve_numbers=reserve_numbers,
        device=packed.weight.device,
        dtype=packed.weight.dtype,
    )
    _copy_rows(packed, paged, backend)
    return paged


def _copy_rows(source: Storage, target: Storage, backend: str | None) -> None:
    """Copies all rows of a table to another one."""
    target.weight.requires_grad_(source.weight.requires_grad)
    mover = Mover(source, backend)
    count = min(source.num_rows, target.num_rows)
    for part in parts(count, 0):
        rows = np.arange(part.start, min(part.stop, count))
        (offset, dim), (place, taken) = source.spans(rows), target.spans(rows)
        plan = mover.plan(offset, place, np.minimum(dim, taken), taken)
        mover.apply(target.weight, source.weight, plan)
