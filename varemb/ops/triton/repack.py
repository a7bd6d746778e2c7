# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Rows moved to other places and other dims."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.checks import check, check_vector
from varemb.ops.triton.launch import OPTIONS, guard, rows_block


@triton.jit
def repack_kernel(
    out_ptr,  # [E']
    values_ptr,  # [E]
    moves_ptr,  # [M, 4]: source, target, kept, dim
    moves,
    out_numbers,
    numbers,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    # A program takes ROWS moves, BLOCK_D numbers of each at a time, from the end that is written
    # over last, so that a row may move to a place that overlaps its own; a move that leaves the
    # tensors writes nothing. Numbers are copied as integers, bit for bit. Deterministic.
    move = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = move < moves
    source = tl.load(moves_ptr + move * 4, mask=mask, other=0)
    target = tl.load(moves_ptr + move * 4 + 1, mask=mask, other=0)
    kept = tl.load(moves_ptr + move * 4 + 2, mask=mask, other=0)
    dim = tl.load(moves_ptr + move * 4 + 3, mask=mask, other=0)
    is_good = (kept >= 0) & (kept <= dim) & (source >= 0) & (target >= 0)
    is_good = is_good & (source <= numbers - kept) & (target <= out_numbers - dim)
    tl.device_assert(is_good | (move >= moves), "repack: a move leaves the tensors")
    dim = tl.where(is_good, dim, 0)
    chunks = (dim + BLOCK_D - 1) // BLOCK_D  # [ROWS]
    for chunk in range(0, tl.max(chunks, 0)):
        first = tl.where(target <= source, chunk, chunks - 1 - chunk) * BLOCK_D
        column = first[:, None] + tl.arange(0, BLOCK_D)[None, :]
        inside = (column >= 0) & (column < dim[:, None])
        is_kept = inside & (column < kept[:, None])
        number = tl.load(values_ptr + source[:, None] + column, mask=is_kept, other=0)
        tl.debug_barrier()  # every warp has read its part of the chunk
        tl.store(out_ptr + target[:, None] + column, number, mask=inside)


_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
# Columns at a time: rows are mostly narrower than this, and 64 two-byte numbers fill a cache line.
_COLUMNS = 64
# Numbers in a tile: 4 per thread of four warps.
_TILE = 512


def repack_(out: Tensor, values: Tensor, moves: Tensor) -> None:
    """out[target + k] = values[source + k] for k < kept, 0 for kept <= k < dim, for every move.

    Args:
        out: changed. [E'], of 1, 2, 4 or 8 bytes; may be `values` when no move writes what another
            one reads.
        values: [E], dtype of out.
        moves: source, target, kept and dim; targets do not overlap. [M, 4], int64.

    Raises:
        ValueError: the tensors do not fit together.
        IndexError: a move leaves the tensors (on a GPU a device assert); nothing is written then.

    Deterministic: yes.
    """
    check_vector("repack", "out", out)
    check_vector("repack", "values", values)
    check(
        moves.dtype == torch.int64
        and moves.dim() == 2
        and moves.shape[1] == 4
        and moves.is_contiguous(),
        "repack: moves must be a contiguous int64 tensor [moves, 4]",
    )
    check(
        out.dtype == values.dtype and out.element_size() in _BITS,
        f"repack: out and values must have one dtype of 1, 2, 4 or 8 bytes, "
        f"got {out.dtype} and {values.dtype}",
    )
    _check_moves(out, values, moves)
    count = moves.shape[0]
    if count == 0:
        return
    bits = _BITS[out.element_size()]
    rows = rows_block(_COLUMNS, _TILE, count, out)
    with guard(out):
        repack_kernel[(triton.cdiv(count, rows),)](
            out_ptr=out.view(bits),
            values_ptr=values.view(bits),
            moves_ptr=moves,
            moves=count,
            out_numbers=out.shape[0],
            numbers=values.shape[0],
            ROWS=rows,
            BLOCK_D=_COLUMNS,
            **OPTIONS,
        )


def _check_moves(out: Tensor, values: Tensor, moves: Tensor) -> None:
    """Every move stays inside the tensors; in the interpreter only."""
    if moves.is_cuda:
        return
    source, target, kept, dim = moves.unbind(1)
    bad = (kept < 0) | (dim < kept) | (source < 0) | (target < 0)
    bad |= (source > values.numel() - kept) | (target > out.numel() - dim)
    if bool(bad.any()):
        at = int(bad.nonzero()[0, 0])
        raise IndexError(
            f"repack: move {at} leaves the tensors of {values.numel()} and {out.numel()} numbers: "
            f"source, target, kept, dim are {', '.join(map(str, moves[at].tolist()))}"
        )
