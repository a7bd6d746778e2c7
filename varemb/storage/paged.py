"""The paged layout: rows that grow, shrink, come and go, 4 bytes of index a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.storage.base import RowMap
from varemb.storage.compaction import compact
from varemb.storage.growing import GrowingStorage
from varemb.storage.handles import ABSENT, Array
from varemb.storage.moves import Mover, NewNumbers, parts
from varemb.storage.requests import check_init, checked_dims, checked_rows, map_rows
from varemb.storage.slots import ChunkPlan, Handles

Ints = npt.NDArray[np.int64]


class PagedStorage(GrowingStorage):
    """Rows that change their dims, one slab of chunks per dim.

    A row's numbers never move but by a change of that very row, or by `compact`. Numbers of the
    buffer that no row has are 0.

    Views of rows that were taken before a change are no longer the rows; a backward of a lookup
    made before a change is refused by torch ("modified by an inplace operation"). A state dict
    looks at the weight as it is, like torch's own: copy it (copy.deepcopy) before rows change, if
    it is to be loaded again.

    Args:
        dims: numbers of each row, 0 <= d[r] <= D. [N], any int dtype; -1: the row is absent.
        width: D, at most 2048.
        sizes: dims that rows may take; None allows all.
        reserve_rows: rows to have room for; within it the index stays where it is.
        reserve_numbers: numbers to have room for; within it the weight and the optimizer's state
            stay where they are. Changes need the new numbers beside the old ones.
        device, dtype: of the numbers.
    """

    def has(self, rows: Any) -> npt.NDArray[np.bool_]:  # [n]
        """Whether rows are there."""
        return self.handles.read(checked_rows("has", rows, self.num_rows)) != ABSENT

    @property
    def fragmentation(self) -> float:
        """Allocated numbers over live ones: free slots, gaps, and what the buffer has beyond.

        The unused end of a reservation does not count.
        """
        is_reserved = self.weight.numel() <= self.reserve_numbers
        allocated = self.used_numbers if is_reserved else self.weight.numel()
        return max(allocated, 1) / max(self.live, 1)

    def row(self, row: int) -> Tensor:  # [d[row]]
        """The numbers of one row, a view of the weight until the table changes."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row: must be in [0, {self.num_rows}), got {row}")
        _, (offset,), (dim,) = self._locate("row", np.array([row]))
        return self.weight[int(offset) : int(offset + dim)]

    # --- changes

    @torch.inference_mode(False)  # what it makes is to be trained
    @torch.no_grad()
    def resize(
        self,
        rows: Any,
        dims: Any,
        init: str | RowMap = "zeros",
        *,
        std: float = 0.01,
        keep_state: bool = True,
        generator: torch.Generator | None = None,
        backend: str | None = None,
    ) -> None:
        """Gives rows other dims; each keeps its first min(old, new) numbers and their state.

        Args:
            rows: distinct rows that are there. [n]
            dims: one int for all or one per row. [n]
            init: what new numbers are: "zeros", "normal" (N(0, std)), or a function that makes
                whole new rows: (old [n, D] zero-padded, old dims [n], new dims [n]) -> [n, D].
            std: of "normal".
            keep_state: False starts the rows' optimizer state anew.
            generator: of "normal"; torch's own by default.
            backend: as in `ops.lookup`.

        Raises:
            TypeError, ValueError, IndexError: rows or dims that do not fit, absent rows; nothing
                has changed then.
            RuntimeError: there is no memory for the new numbers; nothing has changed then.

        Deterministic: yes. Synchronizes: yes.
        """
        rows = checked_rows("resize", rows, self.num_rows)
        dims = checked_dims("resize", dims, len(rows), self.width, self.sizes)
        check_init("resize", init, std, generator, self.weight.device)
        mover, new = Mover(self, backend), NewNumbers(init, std, generator)
        asked = np.zeros(self.width + 1, np.int64)
        changed = np.ones(len(rows), bool)
        for part in parts(len(rows), self.width):
            _, _, old = self._locate("resize", rows[part])
            changed[part] = old != dims[part]
            asked += np.bincount(dims[part][changed[part]], minlength=len(asked))
        if not changed.all():
            rows, dims = rows[changed], dims[changed]
        if not rows.size:
            return
        made = None
        if callable(init):
            _, offset, old = self._locate("resize", rows)
            made = map_rows("resize", init, mover.block(offset, old, self.width), old, dims)
        self._provide(asked, backend)
        left: list[tuple[Handles, Ints]] = []
        try:
            for part in parts(len(rows), self.width):
                own = None if made is None else made[part]
                left.append(self._resize(mover, rows[part], dims[part], new, own, keep_state))
        finally:
            # Not before: slots made for later parts are in chunks without rows, which go when many
            # slots of a dim are free.
            for handles, old in left:
                self.slots.give(handles, old)

    def _resize(
        self,
        mover: Mover,
        rows: Ints,
        dims: Ints,
        new: NewNumbers,
        made: Tensor | None,
        keep_state: bool,
    ) -> tuple[Handles, Ints]:
        """Rows get other slots, which there are; what can fail comes before what changes.

        Returns: the slots that they leave, and the dims of these.
        """
        handles, offset, old = self._locate("resize", rows)
        kept = np.minimum(old, dims)
        block = mover.new_numbers(new, dims - kept) if made is None else made
        taken = self.slots.take(dims)
        target, _ = self.slots.locate(taken)
        mover.relocate(offset, target, kept, dims, keep_state=keep_state)
        if made is not None:
            mover.store(made, target, dims)
        else:
            mover.put(block, target + kept, dims - kept)
        mover.clear(offset, old)
        if not keep_state:
            self.reset_rows(rows)
        self._write(rows, taken)
        self.live += int(dims.sum() - old.sum())
        return handles, old

    @torch.inference_mode(False)  # what it makes is to be trained
    @torch.no_grad()
    def extend(
        self,
        count: int,
        dims: Any,
        init: str | RowMap = "normal",
        *,
        std: float = 0.01,
        generator: torch.Generator | None = None,
        backend: str | None = None,
    ) -> Tensor:  # [n] int64
        """New rows, with fresh optimizer state; removed rows are used again first, last one first.

        Args: as `resize`; a function gets old dims of 0.

        Returns:
            The rows' numbers. [n], int64, on the CPU.

        Raises: as `resize`.
        """
        if count < 0:
            raise ValueError(f"extend: count must not be negative, got {count}")
        dims = checked_dims("extend", dims, count, self.width, self.sizes)
        check_init("extend", init, std, generator, self.weight.device)
        mover, new = Mover(self, backend), NewNumbers(init, std, generator)
        made = None
        if callable(init):
            block = self.weight.new_zeros(count, self.width)
            made = map_rows("extend", init, block, np.zeros(count, np.int64), dims)
        again = min(count, len(self.removed))
        fresh = np.arange(self.next_row, self.next_row + count - again)
        used = np.array(self.removed[len(self.removed) - again :], np.int64)
        rows = np.concatenate([used[::-1], fresh])
        if self.next_row + len(fresh) > self.num_rows:
            self.grow_rows(self.next_row + len(fresh))
        self._provide(np.bincount(dims, minlength=self.width + 1), backend)
        for part in parts(count, self.width):
            none = np.zeros_like(dims[part])
            block = mover.new_numbers(new, dims[part]) if made is None else made[part]
            taken = self.slots.take(dims[part])
            target, _ = self.slots.locate(taken)
            mover.relocate(none, target, none, dims[part])
            if made is not None:
                mover.store(block, target, dims[part])
            else:
                mover.put(block, target, dims[part])
            self._write(rows[part], taken)
        self.reset_rows(rows)
        del self.removed[len(self.removed) - again :]
        self.next_row += len(fresh)
        self.live += int(dims.sum())
        self.present_rows += count
        return torch.from_numpy(rows)

    @torch.inference_mode(False)  # what it makes is to be trained
    @torch.no_grad()
    def remove(self, rows: Any, *, backend: str | None = None) -> None:
        """Takes rows out of the table; looking one up is an IndexError from then on.

        Args:
            rows: distinct rows that are there. [n]

        Raises: as `resize`.
        """
        rows = checked_rows("remove", rows, self.num_rows)
        mover = Mover(self, backend)
        for part in parts(len(rows), self.width):
            self._locate("remove", rows[part])
        for part in parts(len(rows), self.width):
            handles, offset, dims = self._locate("remove", rows[part])
            mover.clear(offset, dims)
            self.slots.give(handles, dims)
            self._write(rows[part], np.full(len(dims), ABSENT, np.uint32))
            self.live -= int(dims.sum())
        self.removed.frombytes(rows.astype(np.uint32).tobytes())
        self.present_rows -= len(rows)

    @torch.inference_mode(False)  # what it makes is to be trained
    @torch.no_grad()
    def compact(self, *, backend: str | None = None) -> None:
        """Moves rows together and gives back what no row has, but for what is reserved.

        Peak memory beside the table: 64 MiB. Takes time proportional to the table.
        """
        mover = Mover(self, backend)
        used = self.used_numbers
        end = compact(self.slots, self.handles, mover)
        self.clear_numbers(end, used)
        self.push_words()
        numbers = max(end, self.reserve_numbers)
        surplus = self.weight.numel() - numbers
        if surplus > numbers // 200:
            self.set_numbers(end, numbers)
            self.slots.extents.cut(surplus)

    def _locate(self, op: str, rows: Ints) -> tuple[Array, Ints, Ints]:  # [n], [n], [n]
        """Handle, offset and dim of rows that must be there."""
        handles = self.handles.read(rows)
        absent = handles == ABSENT
        if absent.any():
            at = int(np.argmax(absent))
            raise IndexError(
                f"{op}: rows must be rows that the table has, got {rows[at]} at position {at}, "
                "which is absent"
            )
        return handles, *self.slots.locate(handles)

    def _write(self, rows: Ints, handles: Array) -> None:
        self.push_words()
        self.handles.write(rows, handles)

    def _provide(self, asked: Ints, backend: str | None) -> None:
        """Makes chunks for rows of each dim [D + 1], where free slots do not suffice."""
        slots, numbers = self.slots, self.weight.numel()
        plan = slots.plan(asked, roomy=True)
        if plan.missing and slots.drop_dead():
            plan = slots.plan(asked, roomy=True)
        if numbers <= self.reserve_numbers:
            plan = self._fit(asked, plan, backend)
        if plan.missing:
            plan = slots.plan(asked, roomy=True)
            self.grow_numbers(plan.missing)
            plan = slots.plan(asked, roomy=True)
        if plan.chunks > slots.chunk_room:
            try:
                self.grow_words(plan.chunks)
            except Exception:
                slots.release(plan)
                raise
        slots.make(plan.ranges)

    def _fit(self, asked: Ints, plan: ChunkPlan, backend: str | None) -> ChunkPlan:
        """A plan within the reservation, if need be with smaller chunks or after compaction."""
        slots = self.slots
        if plan.missing:
            plan = slots.plan(asked, roomy=False)
        needed = self.live + int(asked @ np.arange(self.width + 1))
        is_short = plan.missing or plan.chunks > slots.chunk_room
        if is_short and needed <= self.weight.numel():
            slots.release(plan)
            self.compact(backend=backend)
            plan = slots.plan(asked, roomy=False)
        return plan
