"""What users may pass as `dims`, made one int16 tensor."""

from __future__ import annotations

import operator
from collections.abc import Iterable
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
        dims: None (all D), one whole number for all rows, or N of them.
        num_rows: N.
        width: D.

    Raises:
        TypeError: dims are a whole plan.
        ValueError: a dim is negative, above D or not whole, there are not N of them, or N is
            negative.
    """
    check_width(module, width)
    if num_rows < 0:
        raise ValueError(f"{module}: num_embeddings must not be negative, got {num_rows}")
    if isinstance(dims, SizePlan):
        names = list(dims)
        raise TypeError(
            f"{module}: dims must be those of one table, pass plan[{names[0]!r}]; got a SizePlan "
            f"with the tables {', '.join(map(repr, names))}"
        )
    given = _as_array(width if dims is None else dims)
    if given.ndim == 0:
        given = np.broadcast_to(given, num_rows)
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


def checked_cardinalities(module: str, cardinalities: Iterable[Any]) -> list[int]:  # [F]
    """Rows of each field, from any sequence, array or tensor of whole numbers.

    Raises:
        TypeError: they are not whole numbers, or not several.
        ValueError: there are none, or one is below 1.
    """
    try:
        rows = [operator.index(cardinality) for cardinality in cardinalities]
    except TypeError:
        raise TypeError(
            f"{module}: cardinalities must be whole numbers, one per field, got {cardinalities}"
        ) from None
    if not rows or min(rows) < 1:
        raise ValueError(f"{module}: cardinalities must be at least 1, got {rows}")
    return rows


def field_dims(cardinalities: list[int], width: int, dims: Any) -> Tensor:  # [N] int16
    """Dims of every row of a table of fields.

    Args:
        cardinalities: rows of each field. [F]
        width: D.
        dims: None, one int for all, one int per field, a SizePlan with one table per field in
            order, or one number per row.

    Raises:
        ValueError: as `row_dims`; a plan has other tables, or other widths.
    """
    module, total = "VarEmbedding.for_fields", sum(cardinalities)
    if isinstance(dims, SizePlan):
        sizes = {name: len(dims[name]) for name in dims}
        if list(sizes.values()) != cardinalities:
            raise ValueError(
                f"{module}: the plan must have one table per field with {cardinalities} rows, "
                f"got {sizes}"
            )
        if set(dims.widths.values()) != {width}:
            raise ValueError(f"{module}: the plan's tables must be {width} wide, got {dims.widths}")
        dims = np.concatenate([dims[name] for name in dims])
    elif dims is not None and _as_array(dims).shape == (len(cardinalities),):
        per_field = row_dims(module, dims, len(cardinalities), width)
        dims = per_field.repeat_interleave(torch.tensor(cardinalities, device="cpu"))
    return row_dims(module, dims, total, width)
