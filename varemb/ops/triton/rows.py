# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Where a row's numbers are: row -> (offset, dim). Nothing else in this room knows the layout.

A 32-byte block serves 24 rows: the offset of the first as int64, then 24 one-byte dims in granules.
"""

import triton
import triton.language as tl

_ROWS_PER_BLOCK = tl.constexpr(24)
_BLOCK_BYTES = tl.constexpr(32)
_BASE_BYTES = tl.constexpr(8)
_BLOCK_WORDS = tl.constexpr(4)


@triton.jit
def locate(index_ptr, row, mask, width, granule):
    """Offset [n] int64 and dim [n] int32 of rows [n] int64; 0 and 0 where the mask is off."""
    block, slot = row // _ROWS_PER_BLOCK, row % _ROWS_PER_BLOCK
    base = tl.load(index_ptr + block * _BLOCK_WORDS, mask=mask, other=0)
    byte = tl.arange(0, _BLOCK_BYTES)[None, :]
    places = index_ptr.to(tl.pointer_type(tl.uint8)) + (block * _BLOCK_BYTES)[:, None] + byte
    units = tl.load(places, mask=mask[:, None] & (byte >= _BASE_BYTES), other=0).to(tl.int32)
    own = (slot + _BASE_BYTES)[:, None]
    before = tl.sum(tl.where(byte < own, units, 0), 1)
    dim = tl.sum(tl.where(byte == own, units, 0), 1) * granule
    return base + before.to(tl.int64) * granule, tl.minimum(dim, width)


@triton.jit
def limited(dim, limit_ptr, limit_step, lookup, mask):
    """Dims [n] cut to the limit of each lookup; limit [1] (step 0) or [L] (step 1), or None."""
    if limit_ptr is not None:
        limit = tl.load(limit_ptr + lookup * limit_step, mask=mask, other=0)
        dim = tl.minimum(dim, tl.maximum(limit, 0))
    return dim


@triton.jit
def look_up(
    index_ptr, indices_ptr, limit_ptr, lookup, mask, num_rows, width, granule, limit_step
):  # fmt: skip
    """Row, offset, dim of lookups [n], and where the mask holds and the row is in the table.

    A row outside the table reads nothing; the kernel asserts that there is none.
    """
    row = tl.load(indices_ptr + lookup, mask=mask, other=0).to(tl.int64)
    is_row = mask & (row >= 0) & (row < num_rows)
    offset, dim = locate(index_ptr, row, is_row, width, granule)
    return row, offset, limited(dim, limit_ptr, limit_step, lookup, is_row), is_row


@triton.jit
def row_at(index_ptr, offset, mask, num_rows, granule, BLOCK_STEPS: tl.constexpr):
    """The row that holds the number at each offset [n] of the flat values. [n] int64

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
