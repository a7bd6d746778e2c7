"""The host's part of a paged table: chunks, and which of their slots are free.

A size class is a dim. Its rows stand in chunks of at most 256 slots; free slots of a class are a
stack of handles, and the stacks of all classes lie in one array, so that a plan for rows of many
classes is made without a loop over rows or classes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from varemb.ops.reference import DIM_BITS, SLOT_BITS
from varemb.storage.extents import Extents

Ints = npt.NDArray[np.int64]
Handles = npt.NDArray[np.uint32]

CHUNK_ROWS = 1 << SLOT_BITS
MAX_CHUNKS = (1 << (32 - SLOT_BITS)) - 1  # the last number is part of ABSENT
DIM_MASK = (1 << DIM_BITS) - 1
_FEWEST_ROWS = 8  # of a chunk that is made ahead of need
_GROWTH = 8  # a class's next chunk has an eighth of its rows


class ChunkPlan(NamedTuple):
    """Chunks to make: ranges of the buffer, already taken, or what is missing for them."""

    ranges: list[tuple[int, int, int]]  # dim, start, rows
    chunks: int
    missing: int  # numbers that would surely suffice at the buffer's end; 0: ranges hold


class Slots:
    """Chunks and free slots.

    Attributes:
        words: base << 12 | dim of each chunk, the last part of the table's index. [chunk room]
        rows_of: slots of each chunk, 0 where there is none. [chunk room]
        live: slots in use of each chunk. [chunk room]
        extents: numbers of the buffer that no chunk has.
        has_new_words: words have changed; a copy on a device is to be renewed.
    """

    def __init__(self, width: int) -> None:
        classes = width + 1
        self.words: Ints = np.zeros(1, np.int64)
        self.rows_of = np.zeros(1, np.uint16)
        self.live = np.zeros(1, np.uint16)
        self.extents = Extents()
        self.has_new_words = False
        self.slots: Ints = np.zeros(classes, np.int64)  # of all chunks of a class
        self.count: Ints = np.zeros(classes, np.int64)  # free ones
        self._dead: Ints = np.zeros(classes, np.int64)  # free ones in chunks without any row
        self._start: Ints = np.zeros(classes, np.int64)  # of a class's stack
        self._room: Ints = np.zeros(classes, np.int64)
        self._free: Handles = np.zeros(0, np.uint32)
        self._end = 0  # of the last stack
        self._chunks = 1  # numbers given out, chunk 0 is of dim 0
        self._unused: list[int] = []  # numbers below _chunks that are free again

    def locate(self, handles: Handles) -> tuple[Ints, Ints]:  # [n], [n]
        """Offset and dim of rows that are there."""
        words = self.words[handles >> SLOT_BITS]
        dim = words & DIM_MASK
        return (words >> DIM_BITS) + (handles & (CHUNK_ROWS - 1)) * dim, dim

    @property
    def chunk_room(self) -> int:
        """Chunks that can be made before `words` must grow."""
        return len(self.words) - self._chunks + len(self._unused)

    @property
    def chunks(self) -> int:
        """Chunks that there are, that of dim 0 included."""
        return self._chunks - len(self._unused)

    @property
    def nbytes(self) -> int:
        """Bytes of everything but the words."""
        arrays = (
            self.rows_of, self.live, self.slots, self.count, self._dead, self._start, self._room,
            self._free,
        )  # fmt: skip
        return sum(a.nbytes for a in arrays) + 8 * len(self._unused) + self.extents.nbytes

    def bind(self, words: Ints) -> None:
        """Takes the index's words: those of now, perhaps with room for more."""
        more = np.zeros(len(words) - len(self.rows_of), np.uint16)
        self.words = words
        if more.size:
            self.rows_of = np.concatenate([self.rows_of, more])
            self.live = np.concatenate([self.live, more])

    def restore(
        self, words: Ints, rows_of: npt.NDArray[np.int16], free: Handles, numbers: int
    ) -> None:
        """Becomes what was saved: chunks [c] and the stacks of free handles, dim after dim."""
        count = len(words)
        self.words[:] = 0
        self.words[:count] = words
        self.rows_of[:count] = rows_of
        used = np.flatnonzero(self.rows_of)
        self._chunks = count
        self._unused = np.flatnonzero(self.rows_of[1:count] == 0).tolist()
        self._unused = [number + 1 for number in self._unused]
        dims = self.words & DIM_MASK
        self.slots = np.bincount(
            dims[used], weights=self.rows_of[used], minlength=len(self.count)
        ).astype(np.int64)
        self.live[:] = self.rows_of
        np.subtract.at(self.live, free >> SLOT_BITS, 1)
        self._set_stacks(free)
        dead = used[self.live[used] == 0]
        np.add.at(self._dead, dims[dead], self.rows_of[dead])
        end = 0
        for chunk in used[np.argsort(self.words[used])].tolist():
            base = int(self.words[chunk]) >> DIM_BITS
            self.extents.give(end, base - end)
            end = base + int(self.rows_of[chunk]) * int(dims[chunk])
        self.extents.give(end, numbers - end)
        self.has_new_words = True

    def take(self, dims: Ints) -> Handles:  # [n] -> [n]
        """Slots for rows of the given dims; there must be enough of them (`plan`, `make`)."""
        order, asked, dim, rank, zeros = _by_class(dims, len(self.count))
        taken: Handles = self._free[(self._start + self.count)[dim] - 1 - rank]
        self.count -= asked
        chunk = taken >> SLOT_BITS
        revived = chunk[self.live[chunk] == 0]
        if revived.size:
            self._count_dead(revived, -1)
        np.add.at(self.live, chunk, 1)
        handles = np.zeros(len(dims), np.uint32)
        handles[order[zeros:]] = taken
        return handles

    def give(self, handles: Handles, dims: Ints) -> None:
        """Frees the slots of rows of the given dims."""
        order, freed, dim, rank, zeros = _by_class(dims, len(self.count))
        given = handles[order[zeros:]]
        chunk = given >> SLOT_BITS
        np.subtract.at(self.live, chunk, 1)
        self._make_room(freed)
        self._free[(self._start + self.count)[dim] + rank] = given
        self.count += freed
        emptied = chunk[self.live[chunk] == 0]
        if emptied.size:
            self._count_dead(emptied, 1)
            touched = np.unique(dim[self.live[chunk] == 0])
            for d in touched[2 * self._dead[touched] > self.count[touched]].tolist():
                self._drop_dead(d)

    def drop_dead(self) -> bool:
        """Gives the space of chunks without rows back; whether there was one."""
        dims = np.flatnonzero(self._dead).tolist()
        for dim in dims:
            self._drop_dead(dim)
        return bool(dims)

    def plan(self, asked: Ints, *, roomy: bool) -> ChunkPlan:
        """The chunks that rows need beyond the free slots.

        Args:
            asked: rows of each dim. [D + 1]
            roomy: chunks get slots ahead of need.
        """
        lack = asked - self.count
        lack[0] = 0
        ranges: list[tuple[int, int, int]] = []
        chunks = numbers = 0
        fits = True
        for dim in np.flatnonzero(lack > 0).tolist():
            rows = int(lack[dim])
            if roomy:
                rows = max(rows, self._rows_ahead(dim))
            chunks += -(-rows // CHUNK_ROWS)
            numbers += rows * dim
            fits = fits and self._find(dim, rows, ranges)
        plan = ChunkPlan(ranges, chunks, 0 if fits else numbers)
        if not fits:
            self.release(plan)
        return plan

    def release(self, plan: ChunkPlan) -> None:
        """Frees what a plan has taken."""
        for dim, start, rows in plan.ranges:
            self.extents.give(start, rows * dim)
        plan.ranges.clear()

    def make(self, ranges: list[tuple[int, int, int]]) -> None:
        """Makes the chunks of a plan; `words` must have room for them."""
        for dim, start, rows in ranges:
            self.push(dim, self.new_chunks(dim, start, rows), rows)

    def new_chunks(self, dim: int, start: int, rows: int) -> Ints:
        """Numbers of the chunks of rows that stand one after another."""
        count = -(-rows // CHUNK_ROWS)
        again = min(count, len(self._unused))
        numbers = np.empty(count, np.int64)
        if again:
            numbers[:again] = self._unused[-again:]
            del self._unused[-again:]
        numbers[again:] = np.arange(self._chunks, self._chunks + count - again)
        self._chunks += count - again
        first = np.arange(count, dtype=np.int64) * CHUNK_ROWS
        self.words[numbers] = (start + first * dim) << DIM_BITS | dim
        self.rows_of[numbers] = np.minimum(rows - first, CHUNK_ROWS)
        self.live[numbers] = 0
        self.slots[dim] += rows
        self.has_new_words = True
        return numbers

    def push(self, dim: int, chunks: Ints, rows: int) -> None:
        """Makes all slots of new chunks free; the first of them is the first to be taken."""
        handles = chunks[:, None] << SLOT_BITS | np.arange(CHUNK_ROWS)
        freed = np.zeros(len(self.count), np.int64)
        freed[dim] = rows
        self._make_room(freed)
        end = int(self._start[dim] + self.count[dim])
        self._free[end : end + rows] = handles.reshape(-1)[:rows][::-1]
        self.count[dim] += rows
        self._dead[dim] += rows

    def drop(self, chunks: Ints) -> None:
        """Gives the space of chunks back; their slots must be in no stack."""
        words = self.words[chunks]
        for word, rows in zip(words.tolist(), self.rows_of[chunks].tolist(), strict=True):
            self.extents.give(word >> DIM_BITS, rows * (word & DIM_MASK))
        np.subtract.at(self.slots, words & DIM_MASK, self.rows_of[chunks])
        self.words[chunks] = 0
        self.rows_of[chunks] = 0
        self.live[chunks] = 0
        self._unused.extend(chunks.tolist())
        self.has_new_words = True

    def keep_free(self, is_kept: npt.NDArray[np.bool_]) -> None:  # [chunk room]
        """Forgets the free slots of all other chunks."""
        stacks = self.free_handles()
        self._set_stacks(stacks[is_kept[stacks >> SLOT_BITS]])

    def _set_stacks(self, stacks: Handles) -> None:
        """Takes free handles, dim after dim, none of them in a chunk without rows."""
        dims = self.words[stacks >> SLOT_BITS] & DIM_MASK
        self.count = np.bincount(dims, minlength=len(self.count))
        self._free, self._end = stacks, len(stacks)
        self._room = self.count.copy()
        self._start = np.cumsum(self.count) - self.count
        self._dead[:] = 0

    def free_handles(self) -> Handles:
        """All free slots, class after class, each stack from its bottom up."""
        dims = np.flatnonzero(self.count).tolist()
        parts = [self._free[self._start[d] : self._start[d] + self.count[d]] for d in dims]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    def _rows_ahead(self, dim: int) -> int:
        rows = max(_FEWEST_ROWS, int(self.slots[dim]) // _GROWTH)
        return min(CHUNK_ROWS, 1 << (rows - 1).bit_length())

    def _find(self, dim: int, rows: int, ranges: list[tuple[int, int, int]]) -> bool:
        """Takes numbers for rows, in one range or in chunks; adds what it took to `ranges`."""
        start = self.extents.take(rows * dim)
        if start is not None:
            ranges.append((dim, start, rows))
            return True
        while rows > 0:
            part = min(rows, CHUNK_ROWS)
            start = self.extents.take(part * dim)
            if start is None:
                return False
            ranges.append((dim, start, part))
            rows -= part
        return True

    def _count_dead(self, chunks: Ints | Handles, sign: int) -> None:
        distinct = np.unique(chunks).astype(np.int64)
        rows = sign * self.rows_of[distinct].astype(np.int64)
        np.add.at(self._dead, self.words[distinct] & DIM_MASK, rows)

    def _drop_dead(self, dim: int) -> None:
        stack = self._free[self._start[dim] : self._start[dim] + self.count[dim]]
        kept = self.live[stack >> SLOT_BITS] > 0
        dead = np.unique(stack[~kept] >> SLOT_BITS).astype(np.int64)
        self.count[dim] = left = int(kept.sum())
        stack[:left] = stack[kept]
        self._dead[dim] = 0
        self.drop(dead)

    def _make_room(self, more: Ints) -> None:
        """Lets every stack take so many handles more."""
        wanted = self.count + more
        over = np.flatnonzero(wanted > self._room)
        if not over.size:
            return
        room = np.where(wanted > 0, self._room, 0)
        room[over] = wanted[over] + wanted[over] // 2
        if self._end + int(room[over].sum()) > len(self._free):
            self._rebuild(room)
            return
        for dim in over.tolist():
            start, count = int(self._start[dim]), int(self.count[dim])
            self._free[self._end : self._end + count] = self._free[start : start + count]
            self._start[dim], self._room[dim] = self._end, room[dim]
            self._end += int(room[dim])

    def _rebuild(self, room: Ints) -> None:
        """Puts all stacks into a new array, without the gaps that moved ones have left."""
        stacks = self.free_handles()
        self._room, self._start = room, np.cumsum(room) - room
        self._end = int(room.sum())
        self._free = np.zeros(self._end + self._end // 4, np.uint32)
        inside = np.arange(len(stacks)) - np.repeat(np.cumsum(self.count) - self.count, self.count)
        self._free[np.repeat(self._start, self.count) + inside] = stacks


def _by_class(dims: Ints, classes: int) -> tuple[Ints, Ints, Ints, Ints, int]:
    """Rows in the order of their dims, those of dim 0 first and then left out.

    Returns: the order [n]; rows of each dim, 0 for dim 0 [D + 1]; dim and rank within its class of
    each row in that order that has numbers; the count of rows that have none.
    """
    order = np.argsort(dims.astype(np.int16), kind="stable")
    counts = np.bincount(dims, minlength=classes)
    zeros = int(counts[0])
    first = np.cumsum(counts) - counts
    dim = dims[order[zeros:]]
    rank = np.arange(zeros, len(dims)) - first[dim]
    counts[0] = 0
    return order, counts, dim, rank, zeros
