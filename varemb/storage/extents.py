"""Free ranges of a flat buffer, in the order of their addresses."""

from __future__ import annotations

from array import array
from bisect import bisect_left

import numpy as np


class Extents:
    """Which numbers of a buffer no chunk has; neighbours are one range.

    Example:
        >>> extents = Extents()
        >>> extents.give(0, 10)
        >>> extents.take(4), extents.take(8), extents.take(6)
        (0, None, 4)
        >>> extents.give(0, 4), extents.give(4, 6), list(extents.starts), extents.numbers
        (None, None, [0], 10)
    """

    def __init__(self) -> None:
        self.starts, self.lengths = array("q"), array("q")
        self.numbers = 0

    def take(self, length: int) -> int | None:
        """Where a range of this length was free, the first in the buffer; None without one."""
        if length > self.numbers or not self.lengths:
            return None
        at = int(np.argmax(np.frombuffer(self.lengths, np.int64) >= length))
        if self.lengths[at] < length:
            return None
        start = self.starts[at]
        self.numbers -= length
        if self.lengths[at] == length:
            del self.starts[at], self.lengths[at]
        else:
            self.starts[at] += length
            self.lengths[at] -= length
        return start

    def give(self, start: int, length: int) -> None:
        """Frees a range."""
        if length == 0:
            return
        self.numbers += length
        at = bisect_left(self.starts, start)
        if at < len(self.starts) and start + length == self.starts[at]:
            length += self.lengths[at]
            del self.starts[at], self.lengths[at]
        if at > 0 and self.starts[at - 1] + self.lengths[at - 1] == start:
            self.lengths[at - 1] += length
            return
        self.starts.insert(at, start)
        self.lengths.insert(at, length)

    def tail(self, end: int) -> int:
        """Length of the free range that ends at `end`, the buffer's."""
        if not self.starts or self.starts[-1] + self.lengths[-1] != end:
            return 0
        return self.lengths[-1]

    def cut(self, length: int) -> None:
        """Forgets the last numbers of the last range, because the buffer ends before them."""
        self.numbers -= length
        self.lengths[-1] -= length
        if self.lengths[-1] == 0:
            del self.starts[-1], self.lengths[-1]

    def clear(self) -> None:
        """Forgets all ranges."""
        self.starts, self.lengths, self.numbers = array("q"), array("q"), 0

    @property
    def nbytes(self) -> int:
        return 2 * self.starts.itemsize * len(self.starts)
