"""Compaction of a paged table: full chunks, one after another, without a second table.

Per size class: rows of badly filled chunks fill the holes of the best filled ones; what is left
over is set aside, a bounded part at a time, while the chunks slide together, and then gets chunks
of exactly its size at the end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from varemb.ops.reference import DIM_BITS, SLOT_BITS
from varemb.storage.handles import ABSENT, Handles
from varemb.storage.moves import STAGING_NBYTES, Mover, parts
from varemb.storage.slots import CHUNK_ROWS, DIM_MASK, Slots

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
# Set aside, and as many on their way while chunks slide: half of the staging in 8-byte numbers. The
# other half is for plans. The largest chunk has a quarter of it.
_STAGED_NUMBERS = STAGING_NBYTES // 4 // 8


class _Slide(NamedTuple):
    """Chunks in the order of their addresses, and where they go when no gap is left."""

    chunks: Ints  # [c]
    source: Ints  # [c]
    target: Ints  # [c]
    numbers: Ints  # [c]

    @property
    def end(self) -> int:
        return int(self.numbers.sum())


def compact(slots: Slots, handles: Handles, mover: Mover) -> int:
    """Moves rows together, so that every slot in use is full and nothing lies between chunks.

    Returns:
        Where the numbers in use end.
    """
    full = _full_chunks(slots)
    staging = mover.staging(min(_STAGED_NUMBERS, mover.weight.numel()))
    _fill_holes(slots, handles, mover, full)
    used = np.flatnonzero(slots.rows_of)
    slots.keep_free(np.zeros(len(slots.words), bool))
    slots.drop(used[slots.live[used] == 0])
    rest = np.flatnonzero((slots.rows_of > 0) & ~full)
    aside = mover.staging(min(_STAGED_NUMBERS, mover.weight.numel()))
    for batch in _batches(slots, rest):
        _put_last(slots, handles, mover, batch, aside, staging)
    slide = _slide(slots)
    for tensor in mover.tensors():
        _slide_tensor(mover, tensor, slide, staging)
    _commit(slots, slide)
    return slide.end


def _full_chunks(slots: Slots) -> Mask:  # [chunk room]
    """Chunks to fill up: of each class as many whole ones as it has rows for, the fullest."""
    whole = np.flatnonzero(slots.rows_of == CHUNK_ROWS)
    used = np.flatnonzero(slots.rows_of)
    classes = len(slots.count)
    live = np.bincount(
        slots.words[used] & DIM_MASK, weights=slots.live[used], minlength=classes
    ).astype(np.int64)
    dim = slots.words[whole] & DIM_MASK
    order = np.lexsort((-slots.live[whole].astype(np.int64), dim))
    counts = np.bincount(dim, minlength=classes)
    first = np.cumsum(counts) - counts
    rank = np.arange(len(whole)) - first[dim[order]]
    full = np.zeros(len(slots.words), bool)
    full[whole[order][rank < live[dim[order]] // CHUNK_ROWS]] = True
    return full


def _fill_holes(slots: Slots, handles: Handles, mover: Mover, full: Mask) -> None:
    """Moves rows of other chunks into the free slots of the full ones."""
    slots.keep_free(full)
    for first, part in handles.parts():
        if not slots.count.any():
            return
        there = np.flatnonzero(part != ABSENT)
        there = there[~full[part[there] >> SLOT_BITS] & (part[there] > 0)]
        old = part[there]
        offset, dim = slots.locate(old)
        order = np.argsort(dim, kind="stable")
        counts = np.bincount(dim, minlength=len(slots.count))
        rank = np.empty(len(dim), np.int64)
        rank[order] = np.arange(len(dim)) - (np.cumsum(counts) - counts)[dim[order]]
        fits = np.flatnonzero(rank < slots.count[dim])
        rows, old, offset, dim = first + there[fits], old[fits], offset[fits], dim[fits]
        new = slots.take(dim)
        target, _ = slots.locate(new)
        np.subtract.at(slots.live, old >> SLOT_BITS, 1)
        for some in parts(len(rows), 0):
            mover.relocate(offset[some], target[some], dim[some], dim[some])
        handles.write(rows, new)


def _batches(slots: Slots, chunks: Ints) -> Iterator[Ints]:
    """Chunks, dim by dim, in groups whose rows may be set aside together."""
    chunks = chunks[np.argsort(slots.words[chunks] & DIM_MASK, kind="stable")]
    numbers = slots.live[chunks] * (slots.words[chunks] & DIM_MASK)
    batch: list[int] = []
    taken = 0
    for chunk, count in zip(chunks.tolist(), numbers.tolist(), strict=True):
        if batch and taken + count > _STAGED_NUMBERS:
            yield np.array(batch)
            batch, taken = [], 0
        batch.append(chunk)
        taken += count
    if batch:
        yield np.array(batch)


def _rows_in(handles: Handles, chunks: Mask) -> tuple[Ints, npt.NDArray[np.uint32]]:
    """The rows of some chunks, and their handles."""
    rows, found = [], []
    for first, part in handles.parts():
        there = np.flatnonzero(part != ABSENT)
        there = there[chunks[part[there] >> SLOT_BITS]]
        rows.append(first + there)
        found.append(part[there])
    return np.concatenate(rows), np.concatenate(found)


def _put_last(
    slots: Slots,
    handles: Handles,
    mover: Mover,
    batch: Ints,
    aside: Tensor,  # bytes
    staging: Tensor,  # bytes
) -> None:
    """Sets the rows of some chunks aside, slides the others together, puts the rows at the end."""
    chosen = np.zeros(len(slots.words), bool)
    chosen[batch] = True
    rows, old = _rows_in(handles, chosen)
    source, dim = slots.locate(old)
    order = np.argsort(dim, kind="stable")
    rows, source, dim = rows[order], source[order], dim[order]
    slots.drop(batch)
    slide = _slide(slots)
    place = np.cumsum(dim) - dim
    out, back = mover.plan(source, place, dim, dim), mover.plan(place, slide.end + place, dim, dim)
    for tensor in mover.tensors():
        kept = aside.view(tensor.dtype)[: int(dim.sum())]
        mover.apply(kept, tensor, out)
        _slide_tensor(mover, tensor, slide, staging)
        mover.apply(tensor, kept, back)
    _commit(slots, slide)
    new = np.empty(len(rows), np.uint32)
    for first, last in _runs(dim):
        d, count = int(dim[first]), last - first
        start = slots.extents.take(count * d)
        assert start == slide.end + int(place[first])
        chunks = slots.new_chunks(d, start, count)
        slots.live[chunks] = slots.rows_of[chunks]
        numbered = chunks[:, None] << SLOT_BITS | np.arange(CHUNK_ROWS)
        new[first:last] = numbered.reshape(-1)[:count]
    handles.write(rows, new)


def _slide(slots: Slots) -> _Slide:
    chunks = np.flatnonzero(slots.rows_of)
    words = slots.words[chunks]
    order = np.argsort(words)
    chunks, words = chunks[order], words[order]
    numbers = slots.rows_of[chunks] * (words & DIM_MASK)
    return _Slide(chunks, words >> DIM_BITS, np.cumsum(numbers) - numbers, numbers)


def _slide_tensor(mover: Mover, tensor: Tensor, slide: _Slide, staging: Tensor) -> None:
    """Moves chunks left in bounded groups: what a group writes is behind all later groups."""
    moving = slide.source != slide.target
    source, target, numbers = (a[moving] for a in (slide.source, slide.target, slide.numbers))
    staged = staging.view(tensor.dtype)
    # The chunks that begin within a span of this length fit, however large the last one is.
    span = max(1, staged.numel() - int(numbers.max(initial=0)))
    group = (np.cumsum(numbers) - numbers) // span
    for first, last in _runs(group):
        some = slice(first, last)
        place = np.cumsum(numbers[some]) - numbers[some]
        mover.apply(staged, tensor, mover.plan(source[some], place, numbers[some], numbers[some]))
        mover.apply(tensor, staged, mover.plan(place, target[some], numbers[some], numbers[some]))


def _runs(keys: Ints) -> Iterator[tuple[int, int]]:
    """Where each run of equal keys begins and ends."""
    bounds = np.flatnonzero(np.diff(keys, prepend=-1, append=-1)).tolist()
    return itertools.pairwise(bounds)


def _commit(slots: Slots, slide: _Slide) -> None:
    """Chunks are where a slide has put them, and all free numbers are behind them."""
    slots.words[slide.chunks] = slide.target << DIM_BITS | (slots.words[slide.chunks] & DIM_MASK)
    slots.has_new_words = True
    free = slots.extents.numbers
    slots.extents.clear()
    slots.extents.give(slide.end, free)
