"""The packed layout: rows one after another in one buffer, 1.34 bytes of index a row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from varemb.ops import lookup
from varemb.ops.reference import ROWS_PER_BLOCK, locate, stored_dims
from varemb.rows import Rows, granule_for, units_of
from varemb.storage.base import RowMap, Storage
from varemb.storage.moves import STAGING_NBYTES, Mover, NewNumbers, parts
from varemb.storage.pages import fitted, give_memory, prefer_huge_pages, with_room
from varemb.storage.rebuild import rebuild
from varemb.storage.requests import check_init, checked_dims, checked_rows, map_rows

Ints = npt.NDArray[np.int64]

MAX_WIDTH = 2048
_BLOCKS_AT_A_TIME = 1 << 16  # while the index is made or read: 1.6 million rows, 40 MB


def packed_index(dims: Tensor, granule: int) -> Tensor:  # [N] -> [ceil(N / 24), 4]
    """The 32-byte blocks: offset of the first row, then 24 one-byte dims in granules.

    Made in parts, so that a billion rows take little more than their dims and their index.
    """
    blocks = -(-dims.numel() // ROWS_PER_BLOCK)
    index = prefer_huge_pages(torch.empty(blocks, 4, dtype=torch.int64, device="cpu"))
    end = 0
    for first in range(0, blocks, _BLOCKS_AT_A_TIME):
        own = index[first : first + _BLOCKS_AT_A_TIME]  # [b, 4]
        start = first * ROWS_PER_BLOCK
        part = dims[start : start + own.shape[0] * ROWS_PER_BLOCK].to(torch.int16)  # <= 2048
        units = torch.zeros(own.shape[0] * ROWS_PER_BLOCK, dtype=torch.uint8, device="cpu")
        units[: part.numel()] = units_of(part, granule)
        units = units.view(-1, ROWS_PER_BLOCK)
        ends = end + granule * units.sum(1, dtype=torch.int32).cumsum(0)  # int64
        own[0, 0] = end
        own[1:, 0] = ends[:-1]
        own[:, 1:] = units.view(torch.int64)
        end = int(ends[-1])
    return index


def count_numbers(index: Tensor, granule: int) -> int:
    """E, numbers of all rows: where the last block begins and what it holds."""
    if index.shape[0] == 0:
        return 0
    units = index[-1, 1:].contiguous().view(torch.uint8)
    return int(index[-1, 0]) + granule * int(units.sum(dtype=torch.int64))


class PackedStorage(Storage):
    """Rows one after another.

    Dims are fixed, but with `reserve_numbers`: then `resize` and `extend` rebuild the table inside
    its buffer, through a staging buffer; at no time does it hold more numbers than reserved.

    Args:
        dims: numbers of each row, 0 <= d[r] <= D. [N], any int dtype. Above a width of 255 a dim is
            rounded up to a granule; `dims` says what was stored.
        width: D, at most 2048.
        reserve_rows: rows that optimizer state per row has room for.
        reserve_numbers: numbers that the weight and optimizer state have room for.
        device, dtype: of the numbers; the index is as large on every device.

    Attributes:
        transient_nbytes: the most that the last `resize` or `extend` took beside the table.
    """

    index: Tensor

    def __init__(
        self,
        dims: Tensor,
        width: int,
        *,
        reserve_rows: int | None = None,
        reserve_numbers: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.num_rows, self.granule = width, dims.numel(), granule_for(width)
        self.reserve_rows, self.reserve_numbers = reserve_rows, reserve_numbers
        index = packed_index(dims.cpu(), self.granule)
        self.numbers = count_numbers(index, self.granule)
        if reserve_numbers is not None and self.numbers > reserve_numbers:
            raise ValueError(
                f"VarEmbedding: reserve_numbers must be at least the rows' {self.numbers} numbers, "
                f"got {reserve_numbers}"
            )
        like = torch.empty(0, device=device, dtype=dtype)
        self.weight = nn.Parameter(with_room(self.numbers, reserve_numbers or 0, like))
        self.keep("index", index, self.weight.device)
        self.transient_nbytes = 0
        self.register_weight()

    @property
    def rows(self) -> Rows:
        index = self.beside("index", self.weight)
        return Rows(index, self.num_rows, self.width, self.granule, self.numbers)

    @property
    def dims(self) -> Tensor:
        return self._dims_as(torch.int64)

    def _dims_as(self, dtype: torch.dtype) -> Tensor:  # [N]
        out = torch.empty(self.num_rows, dtype=dtype, device=self.index.device)
        for first, part in self._dim_parts():
            out[first : first + part.numel()] = part
        return out

    def _dim_parts(self) -> Iterator[tuple[int, Tensor]]:
        """The dims, some rows after others: the first of these rows, and theirs in int64."""
        for block in range(0, self.index.shape[0], _BLOCKS_AT_A_TIME):
            first = block * ROWS_PER_BLOCK
            count = min(_BLOCKS_AT_A_TIME * ROWS_PER_BLOCK, self.num_rows - first)
            own = self.index[block : block + _BLOCKS_AT_A_TIME]
            yield first, stored_dims(own, count, self.granule).clamp_(max=self.width)

    @property
    def live_numbers(self) -> int:
        return self.numbers

    def present(self) -> Tensor:
        return torch.ones(self.num_rows, dtype=torch.bool)

    @property
    def num_present(self) -> int:
        return self.num_rows

    @property
    def fragmentation(self) -> float:
        return 1.0

    @property
    def used_rows(self) -> int:
        return self.num_rows

    @property
    def used_numbers(self) -> int:
        return self.numbers

    def new_state(self, dtype: torch.dtype, fill: float, *, per_row: bool) -> Tensor:
        size = self.num_rows if per_row else self.numbers
        room = self.reserve_rows if per_row else self.reserve_numbers
        like = torch.empty(0, dtype=dtype, device=self.weight.device)
        return with_room(size, room or 0, like).fill_(fill)

    def index_nbytes(self) -> int:
        return self.index.untyped_storage().nbytes()

    def row(self, row: int) -> Tensor:  # [d[row]]
        """The numbers of one row, a view of the weight."""
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row: must be in [0, {self.num_rows}), got {row}")
        block, slot = divmod(row, ROWS_PER_BLOCK)
        units = self.index[block : block + 1, 1:].contiguous().view(torch.uint8)[0]
        start = int(self.index[block, 0]) + self.granule * int(units[:slot].sum())
        return self.weight[start : start + min(self.granule * int(units[slot]), self.width)]

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
        staging_nbytes: int = STAGING_NBYTES,
    ) -> None:
        """Rebuilds the table in place with other dims; rows keep their first min(old, new) numbers.

        First all rows shrink, from the first to the last, sliding to the left; then they grow, from
        the last to the first, sliding to the right. A function as `init` takes n D numbers more.

        Args:
            staging_nbytes: bytes to move through, at most.

        Others, Raises: as `PagedStorage.resize`; ValueError where the rows need more numbers than
        are reserved.
        """
        rows = checked_rows("resize", rows, self.num_rows)
        dims = checked_dims("resize", dims, len(rows), self.width, None)
        check_init("resize", init, std, generator, self.weight.device)
        every = self.dims.cpu()
        old = every.numpy()[rows]
        every[torch.from_numpy(rows)] = torch.from_numpy(dims)
        index = self._fitting_index("resize", every)
        mover, new = Mover(self, backend), NewNumbers(init, std, generator)
        made = None
        if callable(init):
            where = torch.from_numpy(rows).to(self.weight.device)
            block = lookup(self.weight, self.rows, where, backend=backend)
            made = map_rows("resize", init, block, old, dims)
        numbers = count_numbers(index, self.granule)
        self._set_numbers(max(self.numbers, numbers))
        taken = rebuild(mover, self.index.cpu(), index, self.width, self.granule, staging_nbytes)
        self.transient_nbytes = (
            taken + index.nbytes + every.nbytes + (made.nbytes if made is not None else 0)
        )
        self._set_numbers(numbers)
        self.index.copy_(index)
        self._renew(mover, rows, old, new, made)
        if not keep_state:
            self._reset_state(mover, rows)

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
        """New rows behind the others, with fresh optimizer state. Args, Raises: as `resize`.

        Returns: the rows' numbers. [n], int64, on the CPU.
        """
        if count < 0:
            raise ValueError(f"extend: count must not be negative, got {count}")
        dims = checked_dims("extend", dims, count, self.width, None)
        check_init("extend", init, std, generator, self.weight.device)
        index = self._fitting_index("extend", torch.cat([self.dims.cpu(), torch.from_numpy(dims)]))
        mover, new = Mover(self, backend), NewNumbers(init, std, generator)
        none = np.zeros(count, np.int64)
        made = None
        if callable(init):
            block = self.weight.new_zeros(count, self.width)
            made = map_rows("extend", init, block, none, dims)
        rows = np.arange(self.num_rows, self.num_rows + count)
        self._set_numbers(count_numbers(index, self.granule))
        for state in self.states():
            for tensor in state.per_row:
                longer = self.num_rows + count
                give_memory(tensor, fitted(tensor, self.num_rows, longer, self.reserve_rows))
        increment_version(self.index)  # a backward that saved it is refused
        self.index = index.to(self.index.device)
        self.num_rows += count
        self.transient_nbytes = index.nbytes + 8 * self.num_rows
        self._renew(mover, rows, none, new, made)
        self._reset_state(mover, rows)
        return torch.from_numpy(rows)

    def _fitting_index(self, op: str, dims: Tensor) -> Tensor:
        """The index of other dims, if the table may have them."""
        if self.reserve_numbers is None:
            raise ValueError(f"{op}: build the table with resizable=True or reserve_numbers")
        if self.weight.grad is not None:
            raise ValueError(
                f"{op}: weight.grad must be None (zero_grad), its places would be wrong"
            )
        index = packed_index(dims, self.granule)
        numbers = count_numbers(index, self.granule)
        if numbers > self.reserve_numbers:
            raise ValueError(
                f"{op}: the rows must fit into the reserved {self.reserve_numbers} numbers, "
                f"they need {numbers}"
            )
        return index

    def _set_numbers(self, numbers: int) -> None:
        """Another length for the weight and what follows it; the memory stays the same."""
        for tensor in (self.weight, *(tensor for tensor, _ in self.followers())):
            kept = min(tensor.numel(), numbers)
            give_memory(tensor, fitted(tensor, kept, numbers, self.reserve_numbers))
        self.numbers = numbers

    def spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Offset and numbers taken of rows. [n], [n]"""
        where = torch.from_numpy(rows).to(self.index.device)
        offset, dim = locate(self.index, where, self.num_rows, 256 * self.granule, self.granule)
        return offset.cpu().numpy(), dim.cpu().numpy()

    def _renew(
        self,
        mover: Mover,
        rows: Ints,
        old: Ints,  # dims
        new: NewNumbers,
        made: Tensor | None,
    ) -> None:
        """Writes what is new in rows that have their places."""
        for part in parts(len(rows), self.width):
            offset, dim = self.spans(rows[part])
            if made is not None:
                mover.store(made[part], offset, np.minimum(dim, self.width))
            else:
                kept = np.minimum(old[part], dim)
                mover.clear(offset + kept, dim - kept)
                mover.put(mover.new_numbers(new, dim - kept), offset + kept, dim - kept)

    def _reset_state(self, mover: Mover, rows: Ints) -> None:
        """Starts the optimizer state of rows anew."""
        for part in parts(len(rows), self.width):
            mover.reset(*self.spans(rows[part]))
        self.reset_rows(rows)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "dims"] = self._dims_as(torch.int16)

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
        state_dict = dict(state_dict)
        saved = state_dict.pop(prefix + "dims", None)
        if saved is None:
            missing_keys.append(prefix + "dims")
        else:
            reason = self._dims_mismatch(saved)
            if reason is not None:
                error_msgs.append(f"{prefix}dims: {reason}")
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        self.register_weight()

    def _dims_mismatch(self, saved: Tensor) -> str | None:
        """Why saved dims are not this table's, or None."""
        if saved.dim() != 1 or saved.numel() != self.num_rows:
            return f"saved for {saved.numel()} rows, this table has {self.num_rows}"
        differing, reason = 0, ""
        for first, own in self._dim_parts():
            part = saved[first : first + own.numel()].to(own)
            differ = (part != own).nonzero()
            if differ.numel() and not differing:
                row = int(differ[0, 0])
                reason = f"saved {int(part[row])}, this table {int(own[row])}"
                reason = f"first row {first + row}: {reason}"
            differing += differ.shape[0]
        return f"{differing} rows have other dims, {reason}" if differing else None

    def extra_repr(self) -> str:
        return f"{self.num_rows} rows, width {self.width}, {self.numbers} numbers"
