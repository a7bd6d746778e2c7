"""IdMap: raw 64-bit ids to dense rows, for streams whose users and items are not known before."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from varemb import _native

Ids = npt.NDArray[np.int64]
Array = TypeVar("Array", Ids, torch.Tensor)


class IdMap:
    """Gives every id it is shown a row: 0, 1, 2, ... in the order of first appearance.

    An id keeps its row for good. Rows are the same whatever the number of threads; lookups may run
    in several Python threads at once. Takes about 15 bytes an id, its 8 included, and grows in
    small steps.

    Args:
        capacity: ids to make room for; more may come.

    Raises:
        ImportError: the compiled part is missing; the message says why.

    Example:
        >>> users = IdMap()
        >>> users.rows(np.array([7_000_000_001, 12, 7_000_000_001]), grow=True)
        array([0, 1, 0])
        >>> users.rows(np.array([12, 13]), grow=False)
        array([ 1, -1])
        >>> users.ids(), len(users)
        (array([7000000001,         12]), 2)
    """

    def __init__(self, capacity: int = 0) -> None:
        if not 0 <= capacity < 2**32:
            raise ValueError(f"IdMap: capacity must lie in [0, 2^32), got {capacity}")
        self._map = _native.host().IdMap(capacity)

    def rows(self, ids: Array, grow: bool, *, threads: int | None = None) -> Array:
        """Rows of ids; those not seen before get the next ones, or -1 unless the map may grow.

        Args:
            ids: in [0, 2^63 - 1], repeats allowed. [n], int64 (or uint64), numpy or torch on CPU.
            grow: whether unseen ids become rows, in order of first appearance.
            threads: as many as torch uses by default.

        Returns: [n] int64, an array for an array and a tensor for a tensor.

        Raises:
            ValueError: an id is out of range (the message names the first one and its position;
                nothing has been added), or ids is not 1-D.
            TypeError: ids is neither, or of another dtype or device.
            OverflowError: the map would pass 2^32 - 2 ids.

        Deterministic: yes.
        """
        count = torch.get_num_threads() if threads is None else threads
        rows: Ids = self._map.rows(_as_ids(ids, "IdMap.rows"), grow, threads=count)
        return torch.from_numpy(rows) if isinstance(ids, torch.Tensor) else rows

    def __len__(self) -> int:
        """Ids in the map, which is also the next row."""
        return len(self._map)

    def ids(self) -> Ids:
        """Ids in row order, a copy. [len(map)]"""
        ids: Ids = self._map.ids()
        return ids

    @property
    def nbytes(self) -> int:
        """Bytes that the map takes, room for growth included."""
        return int(self._map.nbytes)

    def state(self) -> dict[str, torch.Tensor]:
        """What to save: `ids`, [len(map)] int64 in row order; `from_ids` makes the map again."""
        return {"ids": torch.from_numpy(self.ids())}

    @classmethod
    def from_ids(cls, ids: Array) -> IdMap:
        """The map in which ids[r] has row r.

        Args:
            ids: distinct ids in row order. [n], int64, numpy or torch on CPU.

        Raises:
            ValueError: an id is there twice or out of range.

        Example:
            >>> again = IdMap.from_ids(IdMap.from_ids(np.array([5, 3])).state()["ids"])
            >>> again.rows(torch.tensor([3, 5]), grow=False)
            tensor([1, 0])
        """
        raw = _as_ids(ids, "IdMap.from_ids")
        made = cls(len(raw))
        rows = made.rows(raw, grow=True)
        if len(made) != len(raw):
            again = int((rows != np.arange(len(raw))).argmax())
            raise ValueError(
                f"IdMap.from_ids: ids must be distinct, got {raw[again]} at positions "
                f"{rows[again]} and {again}"
            )
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return IdMap.from_ids, (self.ids(),)


def _as_ids(ids: Ids | torch.Tensor, operation: str) -> Ids:
    """The ids as a contiguous int64 array that may share their memory. [n]"""
    if isinstance(ids, torch.Tensor):
        if ids.device.type != "cpu":
            raise TypeError(f"{operation}: ids must be on the CPU, got {ids.device}")
        array = ids.detach().numpy() if ids.dtype == torch.int64 else None
    elif isinstance(ids, np.ndarray):
        array = ids if ids.dtype in (np.int64, np.uint64) else None
    else:
        raise TypeError(
            f"{operation}: ids must be a numpy array or a tensor, got {type(ids).__name__}"
        )
    if array is None:
        raise TypeError(f"{operation}: ids must be int64, got {ids.dtype}")
    if array.ndim != 1:
        raise ValueError(f"{operation}: ids must be 1-D, got {array.ndim}-D")
    # Above 2^63 a uint64 becomes negative, which is refused by its position.
    return np.ascontiguousarray(array).view(np.int64)
