"""`field_rows`: ids that count from 0 in every field become rows of one table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops.schemas import LIBRARIES


def field_rows(ids: Tensor, starts: Tensor) -> Tensor:
    """Rows of the table in which field f occupies [starts[f], starts[f + 1]).

    Args:
        ids: the id of each field, from 0. [*, F], int32 or int64.
        starts: first row of each field, then the number of rows. [F + 1], int64, ascending.

    Returns:
        [*, F] int64.

    Raises:
        TypeError: ids are no tensor, or not int32 or int64.
        ValueError: the last axis is not F long.
        IndexError: an id is below 0 or not below its field's cardinality.

    Deterministic: yes. Synchronizes: yes, to check the ids.

    Example:
        >>> field_rows(torch.tensor([[2, 0], [0, 1]]), torch.tensor([0, 3, 5]))
        tensor([[2, 3],
                [0, 4]])
    """
    if not isinstance(ids, Tensor):
        raise TypeError(f"field_rows: ids must be a Tensor, got {type(ids).__name__}")
    if ids.dtype not in (torch.int32, torch.int64):
        name = str(ids.dtype).removeprefix("torch.")
        raise TypeError(f"field_rows: ids must be int32 or int64, got {name}")
    fields = starts.shape[0] - 1
    if ids.dim() == 0 or ids.shape[-1] != fields:
        raise ValueError(
            f"field_rows: the last axis of ids must have {fields} fields, "
            f"got shape {list(ids.shape)}"
        )
    rows: Tensor = torch.ops.varemb.field_rows(ids, starts)
    return rows


def _field_rows(ids: Tensor, starts: Tensor) -> Tensor:
    cardinalities = starts.diff()
    bad = (ids < 0) | (ids >= cardinalities)
    if bool(bad.any()):
        at = tuple(bad.nonzero()[0].tolist())
        raise IndexError(
            f"field_rows: ids of field {at[-1]} must be in [0, {int(cardinalities[at[-1]])}), "
            f"got {int(ids[at])}"
        )
    return ids + starts[:-1]


def _fake(ids: Tensor, starts: Tensor) -> Any:
    return ids.new_empty(ids.shape, dtype=torch.int64)


LIBRARIES["varemb"].define("field_rows(Tensor ids, Tensor starts) -> Tensor")
LIBRARIES["varemb"].impl("field_rows", _field_rows, "CompositeExplicitAutograd")
torch.library.register_fake("varemb::field_rows", _fake, lib=LIBRARIES["varemb"])
