"""What a layout hands to an operation: where each row's numbers are, as plain tensors."""

from typing import Any, NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """An index: packed where it has two dimensions, paged where it has one.

    Packed, [ceil(N / 24), 4]: 32 bytes serve 24 rows, an 8-byte offset and 24 one-byte dims in
    granules. Row r starts at `base + granule * (dims before it in its block)` and holds
    `min(granule * dim byte, width)` numbers.

    Paged, [ceil(N / 2) + chunks]: first a 4-byte handle per row, two in a word, the even row in the
    low half; then a word per chunk of rows of one dim, `base << 12 | dim`. A handle is
    `chunk << 8 | slot`, and row r starts at `base + slot * dim`. N is a capacity: a row whose
    handle is -1, or names a chunk or numbers that the table does not have, is absent, and a bad
    index. Rows of dim 0 have handles in chunk 0, whose word is 0.
    """

    index: Tensor  # type: ignore[assignment]  # int64, [ceil(N / 24), 4] or [ceil(N / 2) + chunks]
    num_rows: int  # N
    width: int  # D
    granule: int  # 1, 2, 4, 8 or 16 numbers per unit of the dim bytes; 1 when paged
    numbers: int  # E, length of the flat values


def granule_for(width: int) -> int:
    """Numbers per unit of a packed table's one-byte dims: 1 up to a width of 255, then 2, 4, 8, 16.

    Example:
        >>> [granule_for(width) for width in (64, 255, 256, 1024, 2048)]
        [1, 1, 2, 8, 16]
    """
    granule = 1
    while units_of(width, granule) > 255:
        granule *= 2
    return granule


def units_of(dims: Any, granule: Any) -> Any:
    """Granules that dims take, rounded up: a packed row stores `granule * units` numbers.

    Args:
        dims: a whole number, or an array or tensor of them.
        granule: of the table, or one for each dim.

    Example:
        >>> 16 * units_of(33, granule_for(2048))
        48
    """
    if isinstance(granule, int) and granule == 1:
        return dims  # a hundred million of them need no arithmetic
    return -(-dims // granule)
