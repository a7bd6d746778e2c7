"""What a caller asks of a table that changes: rows, dims and new numbers, checked."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.storage.base import RowMap

Ints = npt.NDArray[np.int64]


def _whole(op: str, name: str, given: Any) -> Ints:
    """Whole numbers as a vector of int64."""
    array = given.detach().cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
    if array.ndim != 1:
        raise ValueError(f"{op}: {name} must be one-dimensional, got shape {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise TypeError(f"{op}: {name} must be whole numbers, got {array.dtype}")
    return array.astype(np.int64, copy=False)


def checked_rows(op: str, rows: Any, num_rows: int) -> Ints:  # [n]
    """Distinct rows of a table.

    Raises:
        TypeError: they are not whole.
        ValueError: one is there twice.
        IndexError: one is outside the table.
    """
    array = _whole(op, "rows", rows)
    if array.size == 0:
        return array
    if array.min() < 0 or array.max() >= num_rows:
        at = int(np.argmax((array < 0) | (array >= num_rows)))
        raise IndexError(f"{op}: rows must be in [0, {num_rows}), got {array[at]} at position {at}")
    ordered = np.sort(array)
    twice = ordered[1:] == ordered[:-1]
    if twice.any():
        raise ValueError(f"{op}: rows must be distinct, got {ordered[int(np.argmax(twice))]} twice")
    return array


def checked_dims(
    op: str, dims: Any, count: int, width: int, sizes: tuple[int, ...] | None
) -> Ints:  # [n]
    """A dim per row: one int for all or `count` whole numbers in [0, width], of `sizes` if given.

    Raises:
        TypeError: they are not whole.
        ValueError: one is out of range or no size of the table, or there are not `count` of them.
    """
    array = _whole(op, "dims", np.full(count, dims) if isinstance(dims, Integral) else dims)
    if array.size != count:
        raise ValueError(f"{op}: dims must have one number per row, {count}, got {array.size}")
    bad = (array < 0) | (array > width)
    allowed = f"in [0, {width}]"
    if sizes is not None:
        bad |= ~np.isin(array, sizes)
        allowed = f"one of {', '.join(map(str, sizes))}"
    if bad.any():
        at = int(np.argmax(bad))
        raise ValueError(f"{op}: dims must be {allowed}, got {array[at]} at position {at}")
    return array


def check_init(
    op: str,
    init: str | RowMap,
    std: float,
    generator: torch.Generator | None,
    device: torch.device,
) -> None:
    """Raises ValueError for a way to make new numbers that there is not."""
    if not callable(init) and init not in ("zeros", "normal"):
        raise ValueError(f"{op}: init must be zeros, normal or a function, got {init!r}")
    if not std >= 0:
        raise ValueError(f"{op}: std must not be negative, got {std}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"{op}: generator must be of the table's device {device}, got {generator.device}"
        )


def map_rows(op: str, init: RowMap, old: Tensor, old_dims: Ints, new_dims: Ints) -> Tensor:
    """New rows made from old ones by the caller's function. [n, D] -> [n, D]

    Raises:
        ValueError: the function returns another shape.
    """
    there = old.device
    dims = (torch.from_numpy(d).to(there) for d in (old_dims, new_dims))
    new = init(old, *dims)
    if not isinstance(new, Tensor) or new.shape != old.shape:
        got = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise ValueError(f"{op}: init must return {list(old.shape)}, got {got}")
    return new.detach().to(device=there, dtype=old.dtype).contiguous()
