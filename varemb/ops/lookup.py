"""`lookup`: rows of different dims as one zero-padded block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops.backend import choose, namespace
from varemb.ops.schemas import LIBRARIES
from varemb.ops.training import (
    LEAD,
    Fused,
    call_trained,
    check_call,
    is_trained,
    limit_tensor,
    register_training,
    save_trained,
    sequence,
    trained_arguments,
    values_gradient,
)
from varemb.rows import Rows


def lookup(
    values: Tensor,  # [E]
    rows: Rows,
    indices: Tensor,  # [*]
    *,
    limit: int | Tensor | None = None,  # [*]
    padding_idx: int | None = None,
    sparse: bool = False,
    fused: Fused | None = None,
    backend: str | None = None,
) -> Tensor:  # [*, D]
    """Rows of different dims as one zero-padded block.

    out[l, k] = values[offset + k] for k < min(d[r], limit), r = indices[l]; 0 beyond. The gradient
    of repeated rows is their sum; rows at `padding_idx` get none.

    Args:
        values: the numbers of all rows, one after another. [E], a floating dtype of 2 to 8 bytes.
        rows: where each row's numbers are.
        indices: rows to read, any order, repeats allowed. [*], int32 or int64.
        limit: read and train only the first so many numbers of a row: one for all, or one per
            index, shape of indices.
        padding_idx: a row that is read but never trained.
        sparse: the gradient of values is a sparse tensor of the touched numbers; packed only.
        fused: an optimizer to apply in backward instead of returning a gradient.
        backend: "cpu", "cuda", "triton" or "reference"; by default the fastest that runs.

    Returns:
        [*, D], dtype of values.

    Raises:
        TypeError: indices or limit are not whole numbers.
        ValueError: a shape does not fit.
        IndexError: an index is below 0 or not below N, or its row is absent.
        RuntimeError: the backend asked for cannot run here; a gradient is differentiated again.

    Deterministic: yes, whatever the number of threads.
    """
    check_call("lookup", values, rows, indices)
    ops = namespace(choose(backend, values.device.type))
    flat = indices.reshape(-1).contiguous()
    limits = limit_tensor("lookup", limit, indices)
    where = (rows.num_rows, rows.width, rows.granule)
    if is_trained(values, fused):
        lead, last = trained_arguments("lookup", rows, values, fused, sparse, padding_idx)
        out = call_trained(ops, "lookup_trained", *lead, rows.index, flat, limits, *where, *last)
    else:
        out = ops.lookup(values, rows.index, flat, limits, *where)
    return out.view(*indices.shape, rows.width)


def _fake(values: Tensor, index: Tensor, indices: Tensor, limit: Any, *where: int) -> Tensor:
    return values.new_empty((indices.shape[0], where[1]))


def _fake_trained(values: Tensor, *rest: Any) -> Tensor:
    return _fake(values, *rest[LEAD - 1 : LEAD + 5])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    index, indices, limit, num_rows, _, granule, padding_idx, form, algorithm = inputs[LEAD:]
    ctx.where, ctx.padding_idx = (num_rows, granule), padding_idx
    ctx.save_for_backward(*save_trained(ctx, inputs, form, algorithm), index, indices, limit)


def _register(name: str) -> None:
    ops, library = getattr(torch.ops, name), LIBRARIES[name]

    def trained(values: Tensor, *rest: Any) -> Any:
        return ops.lookup(values, *rest[LEAD - 1 : LEAD + 5])

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        *saved, index, indices, limit = ctx.saved_tensors
        looked_up = sequence(index, indices, limit, ctx.where, ctx.padding_idx)
        return values_gradient(ops, ctx, tuple(saved), grad, looked_up), *[None] * (LEAD + 8)

    torch.library.register_fake(f"{name}::lookup", _fake, lib=library)
    torch.library.register_fake(f"{name}::lookup_trained", _fake_trained, lib=library)
    register_training(library, "lookup_trained", trained, _setup, backward)


for _name in LIBRARIES:
    _register(_name)
