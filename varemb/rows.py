"""What a layout hands to an operation: where each row's numbers are, as plain tensors."""

from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A packed index: 32 bytes serve 24 rows, an 8-byte offset and 24 one-byte dims in granules.

    Row r starts at `base + granule * (dims before it in its block)` and holds
    `min(granule * dim byte, width)` numbers.
    """

    index: Tensor  # type: ignore[assignment]  # [ceil(N / 24), 4] int64: the base, then 24 dim bytes
    num_rows: int  # N
    width: int  # D
    granule: int  # 1, 2, 4, 8 or 16 numbers per unit of the dim bytes
    numbers: int  # E, length of the flat values
