"""The handles of a paged table's rows, read and written from the host."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

ABSENT = np.uint32(0xFFFFFFFF)
Array = npt.NDArray[np.uint32]
Ints = npt.NDArray[np.int64]
_ROWS_AT_A_TIME = 1 << 17


def is_on_host(index: Tensor) -> bool:
    """Whether the host reads and writes an index itself, instead of by copies."""
    return index.device.type == "cpu"


class Handles:
    """Handles of rows, wherever the index is.

    Args:
        index: of a paged table. [ceil(N / 2) + chunks]
        num_rows: N.
    """

    def __init__(self, index: Tensor, num_rows: int) -> None:
        self._index, self._num_rows = index, num_rows
        self._there = index[: -(-num_rows // 2)].view(torch.int32)
        here = self._there.numpy().view(np.uint32) if is_on_host(index) else None
        self._here: Array | None = here

    def read(self, rows: Ints) -> Array:  # [n] -> [n]
        if self._here is not None:
            return self._here[rows]
        picked = self._there[torch.from_numpy(rows).to(self._there.device)]
        return picked.cpu().numpy().view(np.uint32)

    def write(self, rows: Ints, handles: Array) -> None:
        """Changes rows' handles; a backward of a lookup made before is refused from then on."""
        if self._here is not None:
            self._here[rows] = handles
            torch.autograd.graph.increment_version(self._index)
            return
        device = self._there.device
        self._there[torch.from_numpy(rows).to(device)] = torch.from_numpy(
            handles.view(np.int32)
        ).to(device)

    def tensor(self, count: int) -> Tensor:  # [count] int32
        """The first rows' handles, as they are kept."""
        return self._there[:count]

    def parts(self) -> Iterator[tuple[int, Array]]:
        """All handles, in parts: the first row of each and the handles."""
        for first in range(0, self._num_rows, _ROWS_AT_A_TIME):
            end = min(first + _ROWS_AT_A_TIME, self._num_rows)
            if self._here is not None:
                yield first, self._here[first:end]
            else:
                yield first, self._there[first:end].cpu().numpy().view(np.uint32)
