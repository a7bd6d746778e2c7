"""The paged layout: rows that grow, shrink, come and go, 4 bytes of index a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varemb.ops.reference import stored_dims
from varemb.rows import Rows
from varemb.storage.base import RowMap, Storage
from varemb.storage.compaction import compact
from varemb.storage.handles import ABSENT, Array, Handles
from varemb.storage.moves import Mover, parts
from varemb.storage.pages import moved, prefer_huge_pages, resized
from varemb.storage.placement import count_dims, place
from varemb.storage.requests import check_init, checked_dims, checked_rows, map_rows
from varemb.storage.slots import CHUNK_ROWS, MAX_CHUNKS, Slots

Ints = npt.NDArray[np.int64]

_SPARE_CHUNKS = 16
_NUMBERS_GROWTH = 16  # a full buffer grows by a sixteenth
_ROWS_GROWTH = 128


class PagedStorage(Storage):
    """Rows that change their dims, one slab of chunks per dim.

    A row's numbers never move but by a change of that very row, or by `compact`. Numbers of the
    buffer that no row has are 0.

    Views of rows that were taken before a change are no longer the rows; a backward of a lookup
    made before a change is refused by torch ("modified by an inplace operation").

    Args:
        dims: numbers of each row, 0 <= d[r] <= D. [N], any int dtype; -1: the row is absent.
        width: D, at most 2048.
        sizes: dims that rows may take; None allows all.
        reserve_rows: rows to have room for; within it the index stays where it is.
        reserve_numbers: numbers to have room for; within it the weight and the optimizer's state
            stay where they are. Changes need the new numbers beside the old ones.
        device, dtype: of the numbers.

    Attributes:
        next_row: rows from here on were never there.
    """

    index: Tensor

    def __init__(
        self,
        dims: Tensor,
        width: int,
        *,
        sizes: tuple[int, ...] | None = None,
        reserve_rows: int | None = None,
        reserve_numbers: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.sizes = width, sizes
        given = dims.detach().cpu().numpy()
        self.num_rows = max(len(given), reserve_rows or 0)
        self.reserve_numbers = reserve_numbers or 0
        self.next_row = len(given)  # rows from here on were never there
        self._slots = Slots(width)
        counts = count_dims(given, width)
        self._live_numbers = int(counts @ np.arange(width + 1))
        self._live_rows = int(counts.sum())
        numbers = max(self._live_numbers, self.reserve_numbers)
        weight = prefer_huge_pages(torch.empty(numbers, device=device, dtype=dtype))
        self.weight = nn.Parameter(weight.zero_())
        chunks = 1 + int((-(-counts[1:] // CHUNK_ROWS)).sum())
        room = chunks + _SPARE_CHUNKS + chunks // _NUMBERS_GROWTH + self._reserved_chunks()
        index = torch.zeros(-(-self.num_rows // 2) + room, dtype=torch.int64)
        index[: -(-self.num_rows // 2)] = -1
        self.register_buffer("index", index, persistent=False)
        self._bind()
        place(self._slots, self._handles, given, counts, self.weight.numel())
        self._removed: Ints = np.flatnonzero(given < 0)[::-1]
        self.index = index.to(self.weight.device)
        self._bind()
        self.register_weight()

    def _reserved_chunks(self) -> int:
        """Chunks for which a reserved table has words: growing classes, then full chunks."""
        if not self.reserve_numbers:
            return 0
        classes = self.width if self.sizes is None else len(self.sizes)
        return 64 * classes + 2 * self.num_rows // CHUNK_ROWS

    def _bind(self) -> None:
        """Looks at the index as the host does: the words, and on the CPU the handles."""
        handle_words = -(-self.num_rows // 2)
        words = self.index[handle_words:].cpu().numpy()
        self._slots.bind(words)
        self._handles = Handles(self.index, self.num_rows)

    @property
    def rows(self) -> Rows:
        return Rows(self.index, self.num_rows, self.width, 1, self.weight.shape[0])

    @property
    def dims(self) -> Tensor:
        """Numbers that each row stores; 0 for absent rows. [N], int64."""
        return stored_dims(self.index, self.num_rows, 1)

    def has(self, rows: Any) -> npt.NDArray[np.bool_]:  # [n]
        """Whether rows are there."""
        return self._handles.read(checked_rows("has", rows, self.num_rows)) != ABSENT

    def spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Offset and dim of rows; 0 for absent ones. [n], [n]"""
        handles = self._handles.read(rows)
        offset, dim = self._slots.locate(np.where(handles == ABSENT, 0, handles))
        return offset, dim

    def present(self) -> Tensor:
        parts = [part != ABSENT for _, part in self._handles.parts()]
        return torch.from_numpy(np.concatenate([np.zeros(0, bool), *parts]))

    @property
    def num_present(self) -> int:
        """Rows that are there."""
        return self._live_rows

    @property
    def live_numbers(self) -> int:
        return self._live_numbers

    @property
    def used_numbers(self) -> int:
        return self.weight.numel() - self._slots.extents.tail(self.weight.numel())

    @property
    def fragmentation(self) -> float:
        """Allocated numbers over live ones: free slots, gaps, and what the buffer has beyond.

        The unused end of a reservation does not count.
        """
        is_reserved = self.weight.numel() <= self.reserve_numbers
        allocated = self.used_numbers if is_reserved else self.weight.numel()
        return allocated / max(self._live_numbers, 1)

    def index_nbytes(self) -> int:
        """Bytes of handles, chunk words, free lists and removed rows, wherever they are."""
        mirror = 0 if self.index.device.type == "cpu" else self._slots.words.nbytes
        index = self.index.untyped_storage().nbytes()
        return index + mirror + self._slots.nbytes + self._removed.nbytes

    def row(self, row: int) -> Tensor:  # [d[row]]
        """The numbers of one row, a view of the weight until the table changes."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row: must be in [0, {self.num_rows}), got {row}")
        handles = self._handles.read(np.array([row]))
        self._refuse_absent("row", np.array([row]), handles)
        (offset,), (dim,) = self._slots.locate(handles)
        return self.weight[int(offset) : int(offset + dim)]

    # --- changes

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
        check_init("resize", init, std)
        handles = self._handles.read(rows)
        self._refuse_absent("resize", rows, handles)
        mover = Mover(self, backend)
        offset, old = self._slots.locate(handles)
        changed = old != dims
        if not changed.all():
            rows, dims, handles = rows[changed], dims[changed], handles[changed]
            offset, old = offset[changed], old[changed]
        if not rows.size:
            return
        made = None
        if callable(init):
            made = map_rows("resize", init, mover.block(offset, old, self.width), old, dims)
        self._provide(dims, backend)
        handles = self._handles.read(rows)  # compaction may have moved them
        offset, _ = self._slots.locate(handles)
        taken = self._slots.take(dims)
        target, _ = self._slots.locate(taken)
        kept = np.minimum(old, dims)
        for part in parts(len(rows), self.width):
            mover.relocate(
                offset[part], target[part], kept[part], dims[part], keep_state=keep_state
            )
            if made is not None:
                mover.store(made[part], target[part], dims[part])
            elif init == "normal":
                mover.draw(target[part] + kept[part], (dims - kept)[part], std, generator)
            mover.clear(offset[part], old[part])
        if not keep_state:
            self.reset_rows(rows)
        self._slots.give(handles, old)
        self._write(rows, taken)
        self._live_numbers += int(dims.sum() - old.sum())

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
        check_init("extend", init, std)
        mover = Mover(self, backend)
        none = np.zeros(count, np.int64)
        made = None
        if callable(init):
            block = self.weight.new_zeros(count, self.width)
            made = map_rows("extend", init, block, none, dims)
        again = min(count, len(self._removed))
        fresh = np.arange(self.next_row, self.next_row + count - again)
        rows = np.concatenate([self._removed[len(self._removed) - again :][::-1], fresh])
        if self.next_row + len(fresh) > self.num_rows:
            self._grow_rows(self.next_row + len(fresh))
        self._provide(dims, backend)
        taken = self._slots.take(dims)
        target, _ = self._slots.locate(taken)
        for part in parts(count, self.width):
            mover.relocate(none[part], target[part], none[part], dims[part])
            if made is not None:
                mover.store(made[part], target[part], dims[part])
            elif init == "normal":
                mover.draw(target[part], dims[part], std, generator)
        self.reset_rows(rows)
        self._removed = self._removed[: len(self._removed) - again]
        self.next_row += len(fresh)
        self._write(rows, taken)
        self._live_numbers += int(dims.sum())
        self._live_rows += count
        return torch.from_numpy(rows)

    @torch.no_grad()
    def remove(self, rows: Any, *, backend: str | None = None) -> None:
        """Takes rows out of the table; looking one up is an IndexError from then on.

        Args:
            rows: distinct rows that are there. [n]

        Raises: as `resize`.
        """
        rows = checked_rows("remove", rows, self.num_rows)
        handles = self._handles.read(rows)
        self._refuse_absent("remove", rows, handles)
        mover = Mover(self, backend)
        offset, dims = self._slots.locate(handles)
        for part in parts(len(rows), self.width):
            mover.clear(offset[part], dims[part])
        self._slots.give(handles, dims)
        self._write(rows, np.full(len(rows), ABSENT, np.uint32))
        self._removed = np.concatenate([self._removed, rows])
        self._live_numbers -= int(dims.sum())
        self._live_rows -= len(rows)

    @torch.no_grad()
    def compact(self, *, backend: str | None = None) -> None:
        """Moves rows together and gives back what no row has, but for what is reserved.

        Peak memory beside the table: 64 MiB. Takes time proportional to the table.
        """
        mover = Mover(self, backend)
        used = self.used_numbers
        end = compact(self._slots, self._handles, mover)
        self.weight.detach()[end:used].zero_()
        self._push_words()
        numbers = max(end, self.reserve_numbers)
        if self.weight.numel() - numbers > numbers // 200:
            self._slots.extents.cut(self.weight.numel() - numbers)
            self._set_numbers(end, numbers)

    def _refuse_absent(self, op: str, rows: Ints, handles: Array) -> None:
        absent = handles == ABSENT
        if absent.any():
            at = int(np.argmax(absent))
            raise IndexError(
                f"{op}: rows must be rows that the table has, got {rows[at]} at position {at}, "
                "which is absent"
            )

    def _write(self, rows: Ints, handles: Array) -> None:
        self._push_words()
        self._handles.write(rows, handles)

    def _push_words(self) -> None:
        """Renews the words of an index on a device; on the CPU they are the index's own."""
        if self._slots.has_new_words and self.index.device.type != "cpu":
            self.index[-(-self.num_rows // 2) :] = torch.from_numpy(self._slots.words).to(
                self.index.device
            )
        self._slots.has_new_words = False

    def _provide(self, dims: Ints, backend: str | None) -> None:
        """Makes chunks for rows of the given dims, where free slots do not suffice."""
        slots, numbers = self._slots, self.weight.numel()
        asked = np.bincount(dims, minlength=self.width + 1)
        plan = slots.plan(asked, roomy=True)
        if plan.missing and slots.drop_dead():
            plan = slots.plan(asked, roomy=True)
        if plan.missing and numbers <= self.reserve_numbers:
            plan = slots.plan(asked, roomy=False)
            if plan.missing and self._live_numbers + int(dims.sum()) <= numbers:
                self.compact(backend=backend)
                plan = slots.plan(asked, roomy=False)
        if plan.missing:
            plan = slots.plan(asked, roomy=True)
            self._grow_numbers(plan.missing)
            plan = slots.plan(asked, roomy=True)
        if plan.chunks > slots.chunk_room:
            try:
                self._grow_words(plan.chunks)
            except Exception:
                slots.release(plan)
                raise
        slots.make(plan.ranges)

    def _grow_numbers(self, missing: int) -> None:
        old, used = self.weight.numel(), self.used_numbers
        numbers = old + max(missing - (old - used), old // _NUMBERS_GROWTH)
        self._set_numbers(used, numbers)
        self._slots.extents.give(old, numbers - old)

    def _set_numbers(self, used: int, numbers: int) -> None:
        """Brings the weight and all that follows it to another length, or leaves all as it is."""
        tensors = [self.weight, *(tensor for tensor, _ in self.followers())]
        old = self.weight.numel()
        done: list[Tensor] = []
        try:
            for tensor in tensors:
                tensor.data = moved(tensor, used, numbers)
                done.append(tensor)
        except Exception:
            for tensor in done:
                tensor.data = resized(tensor, old) if numbers > old else moved(tensor, numbers, old)
            raise
        for tensor in tensors[:1] if self.weight.grad is None else (self.weight, self.weight.grad):
            tensor.detach()[used:].zero_()

    def _grow_words(self, more: int) -> None:
        room = len(self._slots.words)
        room += max(more, _SPARE_CHUNKS, room // _NUMBERS_GROWTH)
        if room > MAX_CHUNKS:
            raise RuntimeError(
                f"PagedStorage: a table holds at most {MAX_CHUNKS} chunks, got {room}"
            )
        self._set_index(self.num_rows, room)

    def _grow_rows(self, needed: int) -> None:
        old = self.num_rows
        num_rows = max(needed, old + old // _ROWS_GROWTH)
        self._set_index(num_rows, len(self._slots.words))
        for state in self.states():
            for tensor in state.per_row:
                tensor.data = moved(tensor, old, num_rows)
                tensor.detach()[old:] = state.fill

    def _set_index(self, num_rows: int, chunk_room: int) -> None:
        """A longer index; rows and chunks that are new are absent."""
        old, words = self.index, -(-self.num_rows // 2)
        new_words = -(-num_rows // 2)
        index = old.new_zeros(new_words + chunk_room)
        index[:new_words] = -1
        index[:words] = old[:words]
        index[new_words : new_words + len(self._slots.words)] = old[words:]
        self.index, self.num_rows = index, num_rows
        self._bind()

    def new_state(self, dtype: torch.dtype, fill: float, *, per_row: bool) -> Tensor:
        size = self.num_rows if per_row else self.weight.numel()
        buffer = torch.empty(size, dtype=dtype, device=self.weight.device)
        return prefer_huge_pages(buffer).fill_(fill)

    def _apply(self, fn: Any, recurse: bool = True) -> PagedStorage:
        super()._apply(fn, recurse)
        self._bind()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()
