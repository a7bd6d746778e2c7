"""A packed table rebuilt inside its own buffer: rows shrink to the left, then grow to the right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.ops.reference import ROWS_PER_BLOCK
from varemb.storage.moves import Mover

Ints = npt.NDArray[np.int64]
_PLAN_NBYTES = 256  # of a row, while moves are made


class _Part(NamedTuple):
    """Rows of some blocks: where they were and shall be, and the numbers they take."""

    old_offset: Ints
    new_offset: Ints
    kept: Ints  # the smaller of both
    taken: Ints  # new


def rebuild(
    mover: Mover, old: Tensor, new: Tensor, width: int, granule: int, staging_nbytes: int
) -> int:
    """Moves all rows from one packed index to another.

    Between the two passes every row has the smaller of its dims, so that no pass needs more numbers
    than the larger of both tables; the tensors must have so many.

    Args:
        mover: of the table.
        old, new: indices of the same rows, on the CPU. [ceil(N / 24), 4]
        width, granule: of both.
        staging_nbytes: bytes to move through, at most (but a block of rows at least).

    Returns:
        Bytes that were taken beside the table.
    """
    most = ROWS_PER_BLOCK * (width + granule)  # numbers of a block
    nbytes = most * max(t.element_size() for t in mover.tensors())
    blocks = max(1, staging_nbytes // (nbytes + ROWS_PER_BLOCK * _PLAN_NBYTES))
    blocks = min(blocks, old.shape[0])
    staging = mover.staging(blocks * most)
    starts = [0]
    for part in _parts(old, new, granule, blocks):
        _shrink(mover, part, starts[-1], staging)
        starts.append(starts[-1] + int(part.kept.sum()))
    for part in _parts(old, new, granule, blocks, backward=True):
        starts.pop()
        _grow(mover, part, starts[-1], staging)
    return staging.nbytes + blocks * ROWS_PER_BLOCK * _PLAN_NBYTES


def _parts(
    old: Tensor, new: Tensor, granule: int, blocks: int, *, backward: bool = False
) -> Iterator[_Part]:
    firsts = range(0, old.shape[0], blocks)
    for first in reversed(firsts) if backward else firsts:
        part = slice(first, first + blocks)
        old_offset, old_taken = _places(old[part], granule)
        new_offset, new_taken = _places(new[part], granule)
        yield _Part(old_offset, new_offset, np.minimum(old_taken, new_taken), new_taken)


def _places(index: Tensor, granule: int) -> tuple[Ints, Ints]:
    """Offset and numbers taken of the rows of some blocks; slots past the last row take 0."""
    units = index[:, 1:].contiguous().view(torch.uint8).numpy().astype(np.int64)
    taken = units * granule
    offset = index[:, :1].numpy() + np.cumsum(taken, 1) - taken
    return offset.reshape(-1), taken.reshape(-1)


def _shrink(mover: Mover, part: _Part, start: int, staging: Tensor) -> None:
    """Rows keep what they have in both tables, from `start` on."""
    place = np.cumsum(part.kept) - part.kept
    if np.array_equal((start + place)[part.kept > 0], part.old_offset[part.kept > 0]):
        return
    out = mover.plan(part.old_offset, place, part.kept, part.kept)
    back = mover.plan(place, start + place, part.kept, part.kept)
    for tensor in mover.tensors():
        staged = staging.view(tensor.dtype)
        mover.apply(staged, tensor, out)
        mover.apply(tensor, staged, back)


def _grow(mover: Mover, part: _Part, start: int, staging: Tensor) -> None:
    """Rows go from `start` on to their new places; numbers beyond the kept ones are new."""
    place = np.cumsum(part.kept) - part.kept
    out = mover.plan(start + place, place, part.kept, part.kept)
    back = mover.plan(place, part.new_offset, part.kept, part.taken)
    for tensor, fill in [(mover.weight, 0.0), *mover.followers]:
        staged = staging.view(tensor.dtype)
        mover.apply(staged, tensor, out)
        mover.apply(tensor, staged, back)
        if fill:
            mover.fill(tensor, fill, part.new_offset + part.kept, part.taken - part.kept)
