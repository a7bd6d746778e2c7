"""`coalesce`: repeated rows become one gradient per distinct row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops import reference
from varemb.ops.backend import choose, namespace
from varemb.ops.schemas import LIBRARIES
from varemb.ops.training import check_call, limit_tensor, sequence
from varemb.rows import Rows


def coalesce(
    grad: Tensor,  # [*, D]
    rows: Rows,
    indices: Tensor,  # [*]
    *,
    limit: int | Tensor | None = None,  # [*]
    padding_idx: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:  # [n], [n]
    """The jagged gradient of a lookup: one entry per distinct row, as wide as the row.

    A row's gradient is the sum over its lookups, in their order; `padding_idx` has none. Rows stand
    one after another in table order, each as the run of its numbers' places in the flat values.

    Args:
        grad: gradient of the zero-padded block. [*, D]
        rows: where each row's numbers are, packed.
        indices: the rows that were read. [*], int32 or int64.
        limit: as in `lookup`; numbers at or beyond every limit of their row are left out.
        padding_idx: as in `lookup`.
        backend: as in `lookup`.

    Returns:
        positions [n] int64, ascending, and gradients [n]: indices and values of a coalesced sparse
        tensor of size [E].

    Raises:
        TypeError, ValueError, IndexError: as `lookup`, or the table is paged.

    Deterministic: yes, whatever the number of threads.
    """
    flat = indices.reshape(-1).contiguous()
    check_call("coalesce", grad.new_empty(1).expand(rows.numbers), rows, indices)
    reference.refuse_paged("coalesce", rows.index)
    if grad.shape != (*indices.shape, rows.width):
        raise ValueError(
            f"coalesce: grad must have shape {[*indices.shape, rows.width]}, got {list(grad.shape)}"
        )
    ops = namespace(choose(backend, grad.device.type))
    looked_up = sequence(
        rows.index,
        flat,
        limit_tensor("coalesce", limit, indices),
        (rows.num_rows, rows.granule),
        -1 if padding_idx is None else padding_idx,
    )
    block = grad.reshape(-1, rows.width).contiguous()
    positions, numbers = ops.coalesce(block, *looked_up, rows.numbers)
    return positions, numbers


def _fake_dense(grad: Tensor, *rest: Any) -> Tensor:
    return grad.new_empty((rest[-1],))


def _fake(grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    touched = torch.library.get_ctx().new_dynamic_size()
    return grad.new_empty((touched,), dtype=torch.int64), grad.new_empty((touched,))


for _name, _library in LIBRARIES.items():
    torch.library.register_fake(f"{_name}::coalesce_dense", _fake_dense, lib=_library)
    torch.library.register_fake(f"{_name}::coalesce", _fake, lib=_library)
