# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Where a row's numbers are: row -> (offset, dim). Nothing else in this room knows the layouts.

Packed, a 32-byte block serves 24 rows: the offset of the first as int64, then 24 one-byte dims in
granules. Paged, a 4-byte handle per row names a chunk and a slot in it, and an 8-byte word per
chunk its first number and its rows' dim. Kernels take `chunks`, their number; None when packed.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

_ROWS_PER_BLOCK = tl.constexpr(24)
_BLOCK_BYTES = tl.constexpr(32)
_BASE_BYTES = tl.constexpr(8)
_BLOCK_WORDS = tl.constexpr(4)
_EVEN_BYTES = tl.constexpr(0x00FF00FF00FF00FF)
_ONES = tl.constexpr(0x0001000100010001)  # times four 16-bit numbers: their sum in the top 16 bits
_SLOT_BITS = tl.constexpr(8)
_SLOT_MASK = tl.constexpr(0xFF)
_DIM_BITS = tl.constexpr(12)
_DIM_MASK = tl.constexpr(0xFFF)


def places(index: Tensor, num_rows: int, width: int, granule: int, numbers: int) -> dict[str, Any]:
    """What `locate` needs, by the kernels' names; numbers is the length of the flat values."""
    chunks = None if index.dim() == 2 else index.shape[0] - (num_rows + 1) // 2
    return {
        "index_ptr": index,
        "num_rows": num_rows,
        "width": width,
        "granule": granule,
        "chunks": chunks,
        "numbers": None if chunks is None else numbers,
    }


@triton.jit
def locate(index_ptr, row, mask, num_rows, width, granule, chunks, numbers):
    """Offset [n] int64 and dim [n] int32 of rows [n] int64; 0 and 0 where the mask is off.

    A row that a paged table does not have is 0 and -1.
    """
    if chunks is None:
        offset, dim = locate_packed(index_ptr, row, mask, width, granule)
    else:
        offset, dim = locate_paged(index_ptr, row, mask, num_rows, width, chunks, numbers)
    return offset, dim


@triton.jit
def locate_paged(index_ptr, row, mask, num_rows, width, chunks, numbers):
    """`locate` by a row's handle and the word of its chunk."""
    handle_ptr = index_ptr.to(tl.pointer_type(tl.int32))
    handle = tl.load(handle_ptr + row, mask=mask, other=0).to(tl.uint32, bitcast=True)
    chunk = (handle >> _SLOT_BITS).to(tl.int64)
    slot = (handle & _SLOT_MASK).to(tl.int64)
    is_chunk = mask & (chunk < chunks)
    words = (tl.zeros_like(row) + num_rows + 1) // 2  # of handles, before the chunks'
    word = tl.load(index_ptr + words + chunk, mask=is_chunk, other=0).to(tl.uint64, bitcast=True)
    dim = (word & _DIM_MASK).to(tl.int64)
    offset = (word >> _DIM_BITS).to(tl.int64) + slot * dim
    is_row = is_chunk & (offset + dim <= numbers)
    offset = tl.where(is_row, offset, 0)
    dim = tl.minimum(tl.where(is_row, dim, 0), width).to(tl.int32)
    return offset, tl.where(mask & ~is_row, -1, dim)


@triton.jit
def locate_packed(index_ptr, row, mask, width, granule):
    """`locate` by the block of a row.

    Four lanes read the four words of a block; three of them add the eight dims of theirs, in halves
    of a word, and the lanes' shares of the offset are added.
    """
    block, slot = row // _ROWS_PER_BLOCK, (row % _ROWS_PER_BLOCK).to(tl.int32)
    word = tl.arange(0, _BLOCK_WORDS)[None, :]
    from_ptr = index_ptr + (block * _BLOCK_WORDS)[:, None] + word
    words = tl.load(from_ptr, mask=mask[:, None] & (word >= 0), other=0)  # [n, 4]
    dims = words.to(tl.uint64)
    ahead = slot[:, None] - 8 * (word - 1)  # dims of this word that stand before the row's
    shift = (tl.minimum(tl.maximum(ahead, 0), 7) * 8).to(tl.uint64)
    before = dims & ((tl.full(shift.shape, 1, tl.uint64) << shift) - 1)
    before = tl.where(ahead >= 8, dims, before)
    halves = (before & _EVEN_BYTES) + ((before >> 8) & _EVEN_BYTES)
    units = ((halves * _ONES) >> 48).to(tl.int64)
    offset = tl.sum(tl.where(word == 0, words, units * granule), 1)
    is_own = (ahead >= 0) & (ahead < 8)
    dim = tl.sum(tl.where(is_own, ((dims >> shift) & 0xFF).to(tl.int32), 0), 1) * granule
    return offset, tl.minimum(dim, width)


@triton.jit
def limited(dim, limit_ptr, limit_step, lookup, mask):
    """Dims [n] cut to the limit of each lookup; limit [1] (step 0) or [L] (step 1), or None."""
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + lookup * limit_step, mask=mask, other=0)
        dim = tl.minimum(dim, tl.maximum(limit, 0))
    return dim


@triton.jit
def look_up(
    index_ptr, indices_ptr, limit_ptr, lookup, mask, num_rows, width, granule, chunks, numbers,
    limit_step,
):  # fmt: skip
    """Row, offset, dim of lookups [n], and where the mask holds and the row is in the table.

    A row that is not in the table reads nothing; the kernel asserts that there is none.
    """
    row = tl.load(indices_ptr + lookup, mask=mask, other=0).to(tl.int64)
    is_row = mask & (row >= 0) & (row < num_rows)
    offset, dim = locate(index_ptr, row, is_row, num_rows, width, granule, chunks, numbers)
    is_row = is_row & (dim >= 0)
    dim = tl.maximum(dim, 0)
    return row, offset, limited(dim, limit_ptr, limit_step, lookup, is_row), is_row


@triton.jit
def row_at(index_ptr, offset, mask, num_rows, granule, BLOCK_STEPS: tl.constexpr):
    """The row that holds the number at each offset [n] of the flat values, packed. [n] int64

    Bisects the blocks; BLOCK_STEPS halvings are enough for all of them.
    """
    low = offset * 0
    high = low + (num_rows + _ROWS_PER_BLOCK - 1) // _ROWS_PER_BLOCK
    for _ in range(BLOCK_STEPS):  # the last block whose base is not past the offset
        middle = low + (high - low) // 2
        is_open = mask & (high - low > 1)
        base = tl.load(index_ptr + middle * _BLOCK_WORDS, mask=is_open, other=0)
        low = tl.where(is_open & (base <= offset), middle, low)
        high = tl.where(is_open & (base > offset), middle, high)
    base = tl.load(index_ptr + low * _BLOCK_WORDS, mask=mask, other=0)
    end = base
    row = low * _ROWS_PER_BLOCK
    byte_ptr = index_ptr.to(tl.pointer_type(tl.uint8)) + low * _BLOCK_BYTES + _BASE_BYTES
    for slot in range(_ROWS_PER_BLOCK):  # rows of the block that end at or before the offset
        end += tl.load(byte_ptr + slot, mask=mask, other=0).to(tl.int64) * granule
        row += (end <= offset).to(tl.int64)
    return row
