"""The packed layout: rows one after another in one buffer, 1.34 bytes of index a row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varemb.ops import lookup
from varemb.ops.reference import ROWS_PER_BLOCK, stored_dims
from varemb.rows import Rows
from varemb.storage.base import Storage
from varemb.storage.pages import prefer_huge_pages

MAX_WIDTH = 2048
_BLOCKS_AT_A_TIME = 1 << 18  # while the index is made: 6 million rows, 150 MB
_ROWS_AT_A_TIME = 65536  # for whole-table copies: 64 MiB at a width of 256


def granule_for(width: int) -> int:
    """Numbers per unit of the one-byte dims: 1 up to a width of 255, then 2, 4, 8, 16.

    Example:
        >>> [granule_for(width) for width in (64, 255, 256, 1024, 2048)]
        [1, 1, 2, 8, 16]
    """
    granule = 1
    while -(-width // granule) > 255:
        granule *= 2
    return granule


def packed_index(dims: Tensor, granule: int) -> Tensor:  # [N] -> [ceil(N / 24), 4]
    """The 32-byte blocks: offset of the first row, then 24 one-byte dims in granules.

    Made in parts, so that a billion rows take little more than their dims and their index.
    """
    blocks = -(-dims.numel() // ROWS_PER_BLOCK)
    index = torch.zeros(blocks, 4, dtype=torch.int64)
    end = 0
    for first in range(0, blocks, _BLOCKS_AT_A_TIME):
        own = index[first : first + _BLOCKS_AT_A_TIME]  # [b, 4]
        start = first * ROWS_PER_BLOCK
        part = dims[start : start + own.shape[0] * ROWS_PER_BLOCK].to(torch.int16)  # <= 2048
        units = torch.zeros(own.shape[0] * ROWS_PER_BLOCK, dtype=torch.uint8)
        units[: part.numel()] = (part + (granule - 1)) >> (granule.bit_length() - 1)
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
    """Rows one after another; dims are fixed.

    Args:
        dims: numbers of each row, 0 <= d[r] <= D. [N], any int dtype. Above a width of 255 a dim is
            rounded up to a granule; `dims` says what was stored.
        width: D, at most 2048.
        device, dtype: of the numbers; the index is as large on every device.
    """

    index: Tensor

    def __init__(
        self,
        dims: Tensor,
        width: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.num_rows, self.granule = width, dims.numel(), granule_for(width)
        index = packed_index(dims.cpu(), self.granule)
        self.numbers = count_numbers(index, self.granule)
        weight = torch.empty(self.numbers, device=device, dtype=dtype)
        self.weight = nn.Parameter(prefer_huge_pages(weight))
        self.register_buffer("index", index.to(self.weight.device), persistent=False)
        self.fused = None
        self.register_weight()

    @property
    def rows(self) -> Rows:
        return Rows(self.index, self.num_rows, self.width, self.granule, self.numbers)

    @property
    def dims(self) -> Tensor:
        return stored_dims(self.index, self.num_rows, self.granule).clamp(max=self.width)

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

    @torch.no_grad()
    def to_dense(self) -> Tensor:  # [N, D]
        """All rows, zero-padded."""
        return lookup(
            self.weight, self.rows, torch.arange(self.num_rows, device=self.weight.device)
        )

    @torch.no_grad()
    def copy_dense_(self, dense: Tensor) -> None:
        """Takes each row's first numbers from a dense table [N, D]."""
        kept = self.dims
        columns = torch.arange(self.width, device=self.weight.device)
        starts = stored_dims(self.index, self.num_rows, self.granule).cumsum(0)
        starts -= stored_dims(self.index, self.num_rows, self.granule)
        for first in range(0, self.num_rows, _ROWS_AT_A_TIME):
            part = slice(first, first + _ROWS_AT_A_TIME)
            inside = columns < kept[part, None]
            places = (starts[part, None] + columns)[inside]
            source = dense[part].to(device=self.weight.device, dtype=self.weight.dtype)
            self.weight[places] = source[inside]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "dims"] = self.dims.to(torch.int16)

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
        own = self.dims
        if saved.dim() != 1 or saved.numel() != own.numel():
            return f"saved for {saved.numel()} rows, this table has {own.numel()}"
        differ = (saved.to(own) != own).nonzero()
        if differ.numel() == 0:
            return None
        row = int(differ[0, 0])
        return (
            f"{differ.shape[0]} rows have other dims, first row {row}: "
            f"saved {int(saved[row])}, this table {int(own[row])}"
        )

    def extra_repr(self) -> str:
        return f"{self.num_rows} rows, width {self.width}, {self.numbers} numbers"
