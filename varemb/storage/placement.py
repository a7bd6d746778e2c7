"""Where the rows of a new paged table go: dim after dim, in the order of the rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from varemb.ops.reference import SLOT_BITS
from varemb.storage.handles import Handles
from varemb.storage.slots import Slots

Ints = npt.NDArray[np.int64]
_ROWS_AT_A_TIME = 1 << 19


def count_dims(dims: npt.NDArray[Any], width: int) -> Ints:  # [N] -> [D + 1]
    """Rows of each dim; negative dims are not counted."""
    counts = np.zeros(width + 1, np.int64)
    for first in range(0, len(dims), _ROWS_AT_A_TIME):
        part = dims[first : first + _ROWS_AT_A_TIME]
        counts += np.bincount(part[part >= 0], minlength=width + 1)
    return counts


def place(
    slots: Slots, handles: Handles, dims: npt.NDArray[Any], counts: Ints, numbers: int
) -> None:
    """Gives every row its slot, in chunks without a free one.

    Args:
        slots: of an empty table, with room for the chunks.
        handles: of the table, all absent.
        dims: of each row; negative: the row is absent. [N]
        counts: rows of each dim. [D + 1]
        numbers: length of the buffer.
    """
    first_chunk = np.zeros(len(counts), np.int64)
    start = 0
    for dim in range(1, len(counts)):
        count = int(counts[dim])
        if count:
            chunks = slots.new_chunks(dim, start, count)
            slots.live[chunks] = slots.rows_of[chunks]
            first_chunk[dim] = chunks[0]
            start += dim * count
    slots.extents.give(start, numbers - start)
    before = np.zeros(len(counts), np.int64)
    for first in range(0, len(dims), _ROWS_AT_A_TIME):
        part = dims[first : first + _ROWS_AT_A_TIME]
        rows = np.flatnonzero(part >= 0)
        own = part[rows].astype(np.int64)
        order = np.argsort(own.astype(np.int16), kind="stable")
        here = np.bincount(own, minlength=len(counts))
        rank = np.empty(len(own), np.int64)
        rank[order] = np.arange(len(own)) - np.repeat(np.cumsum(here) - here, here)
        found = (first_chunk[own] << SLOT_BITS) + before[own] + rank
        handles.write(first + rows, np.where(own > 0, found, 0).astype(np.uint32))
        before += here
