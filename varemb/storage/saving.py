"""What a paged table writes to a state dict, and whether what it reads is one.

The layout is saved as it is, free slots in their order, so that a table that goes on from a
checkpoint puts rows where the other one would have.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.ops.reference import DIM_BITS, SLOT_BITS
from varemb.storage.handles import ABSENT
from varemb.storage.slots import CHUNK_ROWS, DIM_MASK, Slots

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.uint32]


class SavedLayout(NamedTuple):
    """Where a paged table's rows are, as tensors of a state dict."""

    handles: Tensor  # [n] int32, of the rows up to next_row
    chunk_words: Tensor  # [c] int64
    chunk_rows: Tensor  # [c] int16
    free_slots: Tensor  # [f] int32: the stacks of free handles, dim after dim
    removed_rows: Tensor  # [r] int64, the next to be used again last
    next_row: Tensor  # [] int64: rows from here on were never there


def layout_of(slots: Slots, handles: Tensor, removed: Rows, next_row: int) -> SavedLayout:
    """The layout of a table. Args: its parts; handles [N] int32."""
    count = int(np.flatnonzero(slots.rows_of)[-1]) + 1 if slots.rows_of.any() else 1
    return SavedLayout(
        handles.clone(),
        torch.from_numpy(slots.words[:count].copy()),
        torch.from_numpy(slots.rows_of[:count].astype(np.int16)),
        torch.from_numpy(slots.free_handles().view(np.int32)),
        torch.from_numpy(removed.astype(np.int64)),
        torch.tensor(next_row),
    )


def fault_of(
    saved: SavedLayout, numbers: int, width: int, sizes: tuple[int, ...] | None
) -> str | None:
    """Why a saved layout cannot be this table's, or None.

    Args:
        saved: from a file, so anything.
        numbers: length of the saved weight.
        width: D of this table.
        sizes: of this table.
    """
    expected = (torch.int32, torch.int64, torch.int16, torch.int32, torch.int64, torch.int64)
    for name, tensor, dtype in zip(saved._fields, saved, expected, strict=True):
        dimensions = 0 if name == "next_row" else 1
        if tensor.dtype != dtype or tensor.dim() != dimensions:
            return f"{name} must be {dtype} with {dimensions} dimensions"
    handles, words, rows_of, free, removed = (t.cpu().numpy() for t in saved[:5])
    dim, base = words & DIM_MASK, words >> DIM_BITS
    rows = rows_of.astype(np.int64)
    if len(words) != len(rows) or not len(words) or words[0] != 0 or rows[0] != 0:
        return "chunk_words and chunk_rows do not fit together"
    if (rows < 0).any() or (rows > CHUNK_ROWS).any() or ((rows > 0) & (dim == 0)).any():
        return f"chunks must have 1 to {CHUNK_ROWS} rows"
    if dim.max() > width:
        return f"rows of dim {int(dim.max())}, this table is {width} wide"
    if sizes is not None and not np.isin(dim[rows > 0], sizes).all():
        return f"dims must be one of {', '.join(map(str, sizes))}"
    used = np.flatnonzero(rows)
    used = used[np.argsort(base[used])]
    ends = base[used] + rows[used] * dim[used]
    if len(used) and (
        base[used[0]] < 0 or ends[-1] > numbers or (base[used[1:]] < ends[:-1]).any()
    ):
        return "chunks overlap or leave the weight"
    slots = free.view(np.uint32)
    fault = _fault_of_rows(handles.view(np.uint32), slots, rows, removed, saved, sizes)
    if fault is None and (np.diff(dim[slots >> SLOT_BITS]) < 0).any():
        return "free_slots must be in the order of their dims"
    return fault


def _fault_of_rows(
    handles: npt.NDArray[np.uint32],
    free: npt.NDArray[np.uint32],
    rows: Ints,
    removed: Ints,
    saved: SavedLayout,
    sizes: tuple[int, ...] | None,
) -> str | None:
    there = handles[handles != ABSENT]
    taken = np.concatenate([there[there > 0], free])
    chunk, slot = taken >> SLOT_BITS, taken & (CHUNK_ROWS - 1)
    if len(taken) and (chunk.max() >= len(rows) or (slot >= rows[chunk]).any()):
        return "handles name slots that no chunk has"
    first = np.cumsum(rows) - rows
    uses = np.bincount(first[chunk] + slot, minlength=int(rows.sum()))
    if (uses != 1).any():
        return "handles and free_slots must name every slot once"
    if sizes is not None and 0 not in sizes and (there == 0).any():
        return f"dims must be one of {', '.join(map(str, sizes))}"
    absent = np.flatnonzero(handles == ABSENT)
    if len(handles) != int(saved.next_row) or not np.array_equal(np.sort(removed), absent):
        return "removed_rows and next_row do not fit the handles"
    return None
