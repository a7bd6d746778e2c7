"""`repack`: a table's numbers and optimizer state moved to rows of other dims."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops.backend import choose, namespace
from varemb.ops.reference import ROWS_PER_BLOCK, is_paged
from varemb.ops.schemas import LIBRARIES
from varemb.rows import Rows

# Moves take 32 bytes a row and what they are made from less than 96: a plan stays below 64 MiB.
_BLOCKS_AT_A_TIME = (64 << 20) // (128 * ROWS_PER_BLOCK)
# Numbers move as bits, so that kernels meet four dtypes.
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def repack(
    tensors: list[Tensor],  # each [E]
    rows: Rows,
    new_rows: Rows,
    *,
    backend: str | None = None,
) -> list[Tensor]:  # each [new E]
    """The same rows in another packed index: row r keeps its first min(d[r], new d[r]) numbers.

    Numbers beyond the old dim are zeros. All tensors move by one plan, so that values and optimizer
    state stay together; each keeps its dtype.

    Args:
        tensors: flat numbers, any dtype of 1, 2, 4 or 8 bytes. Each [E].
        rows: where each row's numbers are.
        new_rows: where they shall be, for the same N rows.
        backend: as in `lookup`.

    Returns:
        New tensors, each [new E].

    Raises:
        ValueError: a layout is paged, the layouts have other numbers of rows, or a tensor is not
            flat with E numbers of 1, 2, 4 or 8 bytes on the device of both layouts.
        RuntimeError: the backend asked for cannot run here.

    Deterministic: yes, bit for bit.

    Example:
        >>> import torch
        >>> from varemb.storage import PackedStorage
        >>> old, new = (PackedStorage(torch.tensor(dims), 4) for dims in ([1, 3], [2, 1]))
        >>> repack([torch.tensor([10, 20, 21, 22])], old.rows, new.rows)
        [tensor([10,  0, 20])]
    """
    for layout in (rows, new_rows):
        if is_paged(layout.index):
            raise ValueError("repack: both layouts must be packed; paged rows move by `move_`")
    if rows.num_rows != new_rows.num_rows:
        raise ValueError(
            f"repack: both layouts must have the same rows, got {rows.num_rows} "
            f"and {new_rows.num_rows}"
        )
    for tensor in tensors:
        if tensor.dim() != 1 or tensor.shape[0] != rows.numbers:
            raise ValueError(
                f"repack: tensors must be flat with {rows.numbers} numbers, "
                f"got shape {list(tensor.shape)}"
            )
        if tensor.element_size() not in _BITS:
            raise ValueError(
                f"repack: tensors must have numbers of 1, 2, 4 or 8 bytes, got {tensor.dtype}"
            )
        devices = (tensor.device, rows.index.device, new_rows.index.device)
        if len(set(devices)) > 1:
            raise ValueError(
                "repack: tensors and both layouts must be on one device, "
                f"got {', '.join(map(str, devices))}"
            )
    sources = [tensor.detach().contiguous() for tensor in tensors]
    moved = [tensor.new_empty(new_rows.numbers) for tensor in sources]
    for first in range(0, rows.index.shape[0], _BLOCKS_AT_A_TIME):
        part = slice(first, first + _BLOCKS_AT_A_TIME)
        move_(moved, sources, _moves(rows, new_rows, part), backend=backend)
    return moved


def move_(
    outs: list[Tensor],  # each [new E], changed
    tensors: list[Tensor],  # each [E]
    moves: Tensor,  # [M, 4]
    *,
    backend: str | None = None,
) -> None:
    """Moves rows of every tensor by one plan: move m copies `kept` numbers and zeros up to `dim`.

    Args:
        outs: flat and contiguous, dtype of the tensor of the same place; may be that tensor, when
            no move writes what another one reads. Each [new E].
        tensors: flat and contiguous, any dtype of 1, 2, 4 or 8 bytes. Each [E].
        moves: source, target, kept and dim of each; targets do not overlap. [M, 4], int64.
        backend: as in `lookup`.

    Raises:
        ValueError: there are not as many outs as tensors, or they do not fit together.
        IndexError: a move leaves the tensors (on a GPU a device assert).
        RuntimeError: the backend asked for cannot run here.

    Deterministic: yes, bit for bit.
    """
    if len(outs) != len(tensors):
        raise ValueError(f"move: {len(tensors)} tensors need as many outs, got {len(outs)}")
    ops = namespace(choose(backend, moves.device.type))
    for out, tensor in zip(outs, tensors, strict=True):
        if out.dtype != tensor.dtype or tensor.element_size() not in _BITS:
            raise ValueError(
                "move: out and tensor must have one dtype of 1, 2, 4 or 8 bytes, "
                f"got {out.dtype} and {tensor.dtype}"
            )
        bits = _BITS[tensor.element_size()]
        ops.repack_(out.detach().view(bits), tensor.detach().view(bits), moves)


def _moves(rows: Rows, new_rows: Rows, blocks: slice) -> Tensor:  # [n, 4]
    """Source, target, numbers kept and numbers written of the rows of some blocks.

    Written is all that a new row takes, also what a granule leaves unused behind its dim.
    """
    source, _, dim = _places(rows, blocks)
    target, written, new_dim = _places(new_rows, blocks)
    return torch.stack([source, target, torch.minimum(dim, new_dim), written], 1)


def _places(rows: Rows, blocks: slice) -> tuple[Tensor, Tensor, Tensor]:  # [n], [n], [n]
    """Offset, numbers taken and dim of the rows of some blocks; slots past the last row take 0."""
    part = rows.index[blocks]
    units = part[:, 1:].contiguous().view(torch.uint8).long()  # [blocks, 24]
    taken = units * rows.granule
    offset = part[:, :1] + taken.cumsum(1) - taken
    return offset.view(-1), taken.view(-1), taken.view(-1).clamp(max=rows.width)


def _fake(*arguments: Any) -> None:
    return None


for _name, _library in LIBRARIES.items():
    torch.library.register_fake(f"{_name}::repack_", _fake, lib=_library)
