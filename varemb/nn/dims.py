"""What users may pass as `dims`, made one int16 tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.plan import SizePlan
from varemb.storage import MAX_WIDTH


def check_width(module: str, width: int) -> None:
    """Raises ValueError when a table cannot be so wide."""
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"{module}: embedding_dim must be in [1, {MAX_WIDTH}], got {width}")


def row_dims(module: str, dims: Any, num_rows: int, width: int) -> Tensor:  # [N] int16
    """Dims of every row, a copy of two bytes a row.

    Args:
        module: who asks, for messages.
        dims: None (all D), one int for all rows, or N whole numbers.
        num_rows: N.
        width: D.

    Raises:
        ValueError: a dim is negative, above D or not whole, or there are not N of them.
    """
    check_width(module, width)
    if dims is None:
        dims = width
    if isinstance(dims, int):
        dims = np.broadcast_to(np.int64(dims), num_rows)
    given = _as_array(dims)
    if given.ndim != 1 or given.size != num_rows:
        raise ValueError(
            f"{module}: dims must have one number per row, {num_rows}, got shape "
            f"{list(given.shape)}"
        )
    if given.dtype.kind not in "biuf":
        raise ValueError(f"{module}: dims must be whole numbers, got {given.dtype}")
    if given.dtype.kind == "f":
        broken = np.flatnonzero(given != np.round(given))
        if broken.size:
            row = int(broken[0])
            raise ValueError(f"{module}: dims must be whole, got {float(given[row])} for row {row}")
    if given.size and not (given.min() >= 0 and given.max() <= width):
        row = int(((given < 0) | (given > width)).argmax())
        raise ValueError(
            f"{module}: dims must be in [0, {width}], got {given[row].item()} for row {row}"
        )
    return torch.from_numpy(given.astype(np.int16))


def _as_array(dims: Any) -> npt.NDArray[Any]:
    """Dims as they were given; floating ones in float64, as numpy has no bfloat16."""
    if not isinstance(dims, Tensor):
        return np.asarray(dims)
    held = dims.detach().cpu()
    return (held.double() if held.is_floating_point() else held).numpy()


def field_dims(cardinalities: Sequence[int], width: int, dims: Any) -> Tensor:  # [N] int16
    """Dims of every row of a table of fields.

    Args:
        cardinalities: rows of each field. [F]
        width: D.
        dims: None, one int for all, one int per field, a SizePlan with one table per field in
            order, or one number per row.

    Raises:
        ValueError: as `row_dims`; a plan has other tables.
    """
    module, total = "VarEmbedding.for_fields", sum(cardinalities)
    if isinstance(dims, SizePlan):
        sizes = {name: len(dims[name]) for name in dims}
        if list(sizes.values()) != list(cardinalities):
            raise ValueError(
                f"{module}: the plan must have one table per field with {list(cardinalities)} "
                f"rows, got {sizes}"
            )
        dims = np.concatenate([dims[name] for name in dims])
    elif dims is not None and not isinstance(dims, int) and len(dims) == len(cardinalities):
        per_field = row_dims(module, dims, len(cardinalities), width)
        dims = per_field.repeat_interleave(torch.tensor(list(cardinalities)))
    return row_dims(module, dims, total, width)
