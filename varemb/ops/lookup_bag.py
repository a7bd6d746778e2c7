"""`lookup_bag`: pooled rows of different dims."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from varemb.ops import reference
from varemb.ops.backend import choose, namespace
from varemb.ops.schemas import LIBRARIES
from varemb.ops.training import (
    LEAD,
    MODES,
    Fused,
    LookedUp,
    call_trained,
    check_bags,
    check_call,
    check_rows_are_old,
    is_trained,
    limit_tensor,
    register_training,
    save_trained,
    trained_arguments,
    values_gradient,
)
from varemb.rows import Rows


def lookup_bag(
    values: Tensor,  # [E]
    rows: Rows,
    indices: Tensor,  # [L]
    offsets: Tensor,  # [G] or [G + 1]
    *,
    mode: str = "mean",
    per_sample_weights: Tensor | None = None,  # [L]
    limit: int | Tensor | None = None,  # [L]
    padding_idx: int | None = None,
    include_last_offset: bool = False,
    sparse: bool = False,
    fused: Fused | None = None,
    backend: str | None = None,
) -> Tensor:  # [G, D]
    """The sum, mean or max of the zero-padded rows of each bag; zeros for an empty bag.

    A row's missing columns are zeros for every mode. Indices equal to `padding_idx` are left out,
    also of the mean's count. In max the first of equal numbers gets the gradient.

    Args:
        values: the numbers of all rows. [E]
        rows: where each row's numbers are.
        indices: rows to read, repeats allowed. [L], int32 or int64.
        offsets: where each bag begins in indices, from 0, never decreasing. [G], or [G + 1] with
            include_last_offset. Same dtype as indices.
        mode: "sum", "mean" or "max".
        per_sample_weights: multiplies each row, "sum" only, dtype of values. [L]
        limit, padding_idx, sparse, fused, backend: as in `lookup`.
        include_last_offset: the last offset is the end of the last bag.

    Returns:
        [G, D], dtype of values.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as `lookup`, or the bags are malformed.

    Deterministic: yes, whatever the number of threads.
    """
    check_call("lookup_bag", values, rows, indices)
    check_bags(values, indices, offsets, mode, per_sample_weights)
    ops = namespace(choose(backend, values.device.type))
    weights = None if per_sample_weights is None else per_sample_weights.contiguous()
    bags = (indices.contiguous(), offsets.contiguous(), weights)
    limits = limit_tensor("lookup_bag", limit, indices)
    where = (rows.num_rows, rows.width, rows.granule)
    if is_trained(values, fused, per_sample_weights):
        lead, last = trained_arguments("lookup_bag", rows, values, fused, sparse, padding_idx)
        options = (MODES[mode], include_last_offset, *last)
        out, _ = call_trained(
            ops, "lookup_bag_trained", *lead, rows.index, *bags, limits, *where, *options
        )
    else:
        padding = -1 if padding_idx is None else padding_idx
        out, _ = ops.lookup_bag(
            values, rows.index, *bags, limits, *where, MODES[mode], padding, include_last_offset
        )
    return out


def _fake(values: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    offsets, width, mode, has_last = rest[2], rest[6], rest[8], rest[10]
    bags = offsets.shape[0] - int(has_last)
    winners = values.new_empty((bags if mode == reference.MAX else 0, width), dtype=torch.int32)
    return values.new_empty((bags, width)), winners


def _forward_arguments(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of lookup_bag among those of lookup_bag_trained."""
    mode, has_last, padding = inputs[LEAD + 8 : LEAD + 11]
    return inputs[0], *inputs[LEAD : LEAD + 8], mode, padding, has_last


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    index, indices, offsets, weights, limit, num_rows, _, granule, *options = inputs[LEAD:]
    mode, has_last, padding_idx, form, algorithm = options
    ctx.options = (num_rows, granule, mode, padding_idx, has_last)
    winners = output[1] if mode == reference.MAX else None
    ctx.mark_non_differentiable(output[1])
    saved = save_trained(ctx, inputs, form, algorithm)
    # The weights' gradient needs the values, whichever way those are trained.
    saved[0] = inputs[0] if form == 2 or weights is not None else None
    ctx.save_for_backward(*saved, index, indices, offsets, weights, limit, winners)


def _register(name: str) -> None:
    ops, library = getattr(torch.ops, name), LIBRARIES[name]

    def trained(*inputs: Any) -> Any:
        return ops.lookup_bag(*_forward_arguments(inputs))

    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
        *saved, index, indices, offsets, weights, limit, winners = ctx.saved_tensors
        num_rows, granule, _, padding_idx, has_last = ctx.options
        weights_grad = None
        if ctx.needs_input_grad[LEAD + 3]:  # before a fused update changes the values
            check_rows_are_old("lookup_bag", ctx, "per_sample_weights")
            weights_grad = ops.lookup_bag_weights_backward(
                grad.contiguous(), saved[0], index, indices, offsets, limit, num_rows, granule,
                padding_idx, has_last,
            )  # fmt: skip
        looked_up = LookedUp(index, indices, offsets, weights, limit, winners, *ctx.options)
        values_grad = values_gradient(ops, ctx, tuple(saved), grad, looked_up)
        return values_grad, *[None] * (LEAD + 2), weights_grad, *[None] * 9

    def fake_weights(grad: Tensor, values: Tensor, index: Tensor, indices: Tensor, *_: Any) -> Any:
        return values.new_empty((indices.shape[0],))

    def fake_trained(*inputs: Any) -> Any:
        return _fake(*_forward_arguments(inputs))

    torch.library.register_fake(f"{name}::lookup_bag", _fake, lib=library)
    torch.library.register_fake(f"{name}::lookup_bag_trained", fake_trained, lib=library)
    torch.library.register_fake(f"{name}::lookup_bag_weights_backward", fake_weights, lib=library)
    register_training(library, "lookup_bag_trained", trained, _setup, backward)


for _name in LIBRARIES:
    _register(_name)
