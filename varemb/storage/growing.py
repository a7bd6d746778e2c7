"""The buffers of a paged table: how they grow, are saved and loaded."""

from __future__ import annotations

import abc
from array import array
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from varemb.ops.reference import stored_dims
from varemb.rows import Rows
from varemb.storage.base import Storage
from varemb.storage.handles import ABSENT, Handles, is_on_host
from varemb.storage.pages import give_memory, moved, prefer_huge_pages
from varemb.storage.placement import count_dims, place
from varemb.storage.saving import SavedLayout, fault_of, layout_of
from varemb.storage.slots import CHUNK_ROWS, MAX_CHUNKS, Slots

Ints = npt.NDArray[np.int64]

_SPARE_CHUNKS = 16
_NUMBERS_GROWTH = 16  # a full buffer grows by a sixteenth
_ROWS_GROWTH = 128


class GrowingStorage(Storage, abc.ABC):
    """Owns the weight and the index of a paged table, and knows the room that they have.

    Attributes:
        slots: chunks and free slots.
        handles: of the rows.
        removed: rows to be used again, the last one first.
        next_row: rows from here on were never there.
        live: numbers that rows have.
        present_rows: rows that are there.
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
        self.next_row = len(given)
        self.slots = Slots(width)
        counts = count_dims(given, width)
        self.live = int(counts @ np.arange(width + 1))
        self.present_rows = int(counts.sum())
        numbers = max(self.live, self.reserve_numbers)
        weight = prefer_huge_pages(torch.empty(numbers, device=device, dtype=dtype))
        self.weight = nn.Parameter(weight.zero_())
        chunks = 1 + int((-(-counts[1:] // CHUNK_ROWS)).sum())
        room = max(chunks + _SPARE_CHUNKS + chunks // _NUMBERS_GROWTH, self._reserved_chunks())
        index = torch.zeros(-(-self.num_rows // 2) + room, dtype=torch.int64, device="cpu")
        index[: -(-self.num_rows // 2)] = -1
        self.index = index
        self._bind()
        place(self.slots, self.handles, given, counts, self.weight.numel())
        self.push_words()
        absent = np.flatnonzero(given < 0)[::-1]
        self.removed = array("I", absent.astype(np.uint32).tobytes())
        self.keep("index", index, self.weight.device)
        self._bind()
        self.register_weight()

    def _reserved_chunks(self) -> int:
        """Chunks that a reserved table has words for: those of growing classes, and full ones.

        Should they not suffice, compaction makes fewer of them.
        """
        if not self.reserve_numbers:
            return 0
        classes = self.width if self.sizes is None else len(self.sizes)
        return 32 * classes + self.num_rows // (CHUNK_ROWS - CHUNK_ROWS // 4)

    def _bind(self) -> None:
        """Looks at the index as it is now."""
        handle_words = -(-self.num_rows // 2)
        words = self.index[handle_words:]
        is_own = is_on_host(self.index)
        self.slots.bind((words if is_own else words.to("cpu", copy=True)).numpy())
        self.handles = Handles(self.index, self.num_rows)

    @property
    def rows(self) -> Rows:
        index = self.index
        if self.beside("index", self.weight) is not index:
            self._bind()
        return Rows(self.index, self.num_rows, self.width, 1, self.weight.shape[0])

    @property
    def dims(self) -> Tensor:
        """Numbers that each row stores; 0 for absent rows. [N], int64."""
        return stored_dims(self.index, self.num_rows, 1)

    def spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Offset and dim of rows; 0 for absent ones. [n], [n]"""
        handles = self.handles.read(rows)
        offset, dim = self.slots.locate(np.where(handles == ABSENT, 0, handles))
        return offset, dim

    def present(self) -> Tensor:
        parts = [part != ABSENT for _, part in self.handles.parts()]
        return torch.from_numpy(np.concatenate([np.zeros(0, bool), *parts]))

    @property
    def num_present(self) -> int:
        """Rows that are there."""
        return self.present_rows

    @property
    def live_numbers(self) -> int:
        return self.live

    @property
    def used_rows(self) -> int:
        return self.next_row

    @property
    def used_numbers(self) -> int:
        return self.weight.numel() - self.slots.extents.tail(self.weight.numel())

    def index_nbytes(self) -> int:
        """Bytes of handles, chunk words, free lists and removed rows, wherever they are."""
        mirror = 0 if is_on_host(self.index) else self.slots.words.nbytes
        index = self.index.untyped_storage().nbytes()
        return index + mirror + self.slots.nbytes + self.removed.itemsize * len(self.removed)

    def push_words(self) -> None:
        """Renews the words of an index on a device; on the CPU they are the index's own."""
        if self.slots.has_new_words and not is_on_host(self.index):
            self.index[-(-self.num_rows // 2) :] = torch.from_numpy(self.slots.words).to(
                self.index.device
            )
        self.slots.has_new_words = False

    def grow_numbers(self, missing: int) -> None:
        """Makes the buffer longer, so that so many numbers are free at its end."""
        old, used = self.weight.numel(), self.used_numbers
        numbers = old + max(missing - (old - used), old // _NUMBERS_GROWTH)
        self.set_numbers(used, numbers)
        self.slots.extents.give(old, numbers - old)

    def set_numbers(self, used: int, numbers: int) -> None:
        """Brings the weight and all that follows it to another length, or leaves all as it is."""
        tensors = [self.weight, *(tensor for tensor, _ in self.followers())]
        _stretch(tensors, used, self.weight.numel(), numbers)
        self.clear_numbers(used, numbers)

    def clear_numbers(self, first: int, end: int) -> None:
        """Numbers of no row become 0, and their gradient."""
        for tensor in (self.weight, self.weight.grad):
            if tensor is not None:
                tensor.detach()[first:end].zero_()

    def grow_words(self, more: int) -> None:
        """Makes room for more chunks."""
        room = len(self.slots.words)
        room += max(more, _SPARE_CHUNKS, room // _NUMBERS_GROWTH)
        if room > MAX_CHUNKS:
            raise RuntimeError(
                f"PagedStorage: a table holds at most {MAX_CHUNKS} chunks, got {room}"
            )
        self._set_index(self.num_rows, room)

    def grow_rows(self, needed: int) -> None:
        """Makes room for rows up to `needed`."""
        old = self.num_rows
        num_rows = max(needed, old + old // _ROWS_GROWTH)
        tensors = [tensor for state in self.states() for tensor in state.per_row]
        _stretch(tensors, old, old, num_rows)
        try:
            self._set_index(num_rows, len(self.slots.words))
        except Exception:
            _stretch(tensors, old, num_rows, old)
            raise

    def _set_index(self, num_rows: int, chunk_room: int) -> None:
        """A longer index; rows and chunks that are new are absent."""
        self.push_words()
        old, words = self.index, -(-self.num_rows // 2)
        new_words = -(-num_rows // 2)
        index = old.new_zeros(new_words + chunk_room)
        index[:new_words] = -1
        index[:words] = old[:words]
        index[new_words : new_words + len(self.slots.words)] = old[words:]
        increment_version(old)  # a backward that saved it is refused
        self.index, self.num_rows = index, num_rows
        self._bind()

    def new_state(self, dtype: torch.dtype, fill: float, *, per_row: bool) -> Tensor:
        size = self.num_rows if per_row else self.weight.numel()
        buffer = torch.empty(size, dtype=dtype, device=self.weight.device)
        return prefer_huge_pages(buffer).fill_(fill)

    def _apply(self, fn: Any, recurse: bool = True) -> GrowingStorage:
        super()._apply(fn, recurse)
        self._bind()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "handles": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._bind()

    def extra_repr(self) -> str:
        return f"{self.present_rows} rows, width {self.width}, {self.live} numbers"

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        weight = self.weight[: self.used_numbers]
        destination[prefix + "weight"] = weight if keep_vars else weight.detach()
        handles = self.handles.tensor(self.next_row)
        layout = layout_of(self.slots, handles, np.array(self.removed), self.next_row)
        for name, tensor in layout._asdict().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: Any,
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + "dims" in state_dict:
            error_msgs.append(f"{prefix}dims: saved by a packed table; load it there, then thaw()")
            return
        names = ("weight", *SavedLayout._fields)
        missing = [prefix + name for name in names if prefix + name not in state_dict]
        missing_keys.extend(missing)
        known = {prefix + name for name in names}
        unexpected_keys.extend(
            key for key in state_dict if strict and key.startswith(prefix) and key not in known
        )
        if missing:
            return
        weight = state_dict[prefix + "weight"]
        saved = SavedLayout(*(state_dict[prefix + name] for name in SavedLayout._fields))
        fault = "weight must be flat" if weight.dim() != 1 else None
        fault = fault or fault_of(saved, weight.numel(), self.width, self.sizes)
        if fault is not None:
            error_msgs.append(f"{prefix}weight: {fault}")
            return
        self._adopt(weight.detach(), saved)

    @torch.inference_mode(False)  # what it makes is to be trained
    @torch.no_grad()
    def _adopt(self, weight: Tensor, saved: SavedLayout) -> None:
        """Takes over a saved table; state of attached optimizers starts anew."""
        rows, chunks = saved.handles.numel(), saved.chunk_words.numel()
        if weight.numel() > self.weight.numel():
            self.set_numbers(0, weight.numel())
        if rows > self.num_rows:
            self.grow_rows(rows)
        if chunks > len(self.slots.words):
            self._set_index(self.num_rows, chunks + _SPARE_CHUNKS + chunks // _NUMBERS_GROWTH)
        self.slots = Slots(self.width)
        self._bind()
        self.weight[: weight.numel()] = weight.to(self.weight)
        self.weight[weight.numel() :].zero_()
        self.slots.restore(
            saved.chunk_words.cpu().numpy(),
            saved.chunk_rows.cpu().numpy(),
            saved.free_slots.cpu().numpy().view(np.uint32),
            self.weight.numel(),
        )
        self.push_words()
        self.next_row = rows
        removed = saved.removed_rows.cpu().numpy()
        self.removed = array("I", removed.astype(np.uint32).tobytes())
        handles = saved.handles.cpu().numpy().view(np.uint32)
        every = np.full(self.num_rows, ABSENT, np.uint32)
        every[:rows] = handles
        self.handles.write(np.arange(self.num_rows), every)
        there = handles[handles != ABSENT]
        self.present_rows = len(there)
        self.live = int(self.slots.locate(there)[1].sum())
        for state in self.states():
            for tensor in (*state.per_number, *state.per_row):
                tensor.fill_(state.fill)


def _stretch(tensors: list[Tensor], kept: int, old: int, numbers: int) -> None:
    """Gives tensors another length, with their first `kept` numbers; all of them or none."""
    done: list[Tensor] = []
    try:
        for tensor in tensors:
            give_memory(tensor, moved(tensor, kept, numbers))
            done.append(tensor)
    except Exception:
        for tensor in done:
            give_memory(tensor, moved(tensor, kept, old))
        raise
