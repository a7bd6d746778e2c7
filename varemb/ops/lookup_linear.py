"""`lookup_linear`: rows of different dims, each times the matrix of its group."""

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
    check_rows_are_old,
    is_trained,
    register_training,
    save_trained,
    sequence,
    trained_arguments,
    values_gradient,
)
from varemb.rows import Rows


def lookup_linear(
    values: Tensor,  # [E]
    rows: Rows,
    indices: Tensor,  # [*, F]
    groups: Tensor,  # [F, D + 1, 2]
    weight: Tensor,  # [S, O]
    bias: Tensor,  # [C, O]
    *,
    padding_idx: int | None = None,
    sparse: bool = False,
    fused: Fused | None = None,
    backend: str | None = None,
) -> Tensor:  # [*, F, O]
    """Every row times the matrix of its group plus the group's bias (AutoDim Eq. 1).

    out[l] = row @ weight[first : first + d[r]] + bias[group], where `first, group` are those of the
    field l mod F and the row's dim d[r]. Repeats are allowed; `padding_idx` is not trained.

    Args:
        values: the numbers of all rows. [E]
        rows: where each row's numbers are.
        indices: rows to read, int32 or int64; the last axis runs over the fields (F = 1: any).
        groups: for each field and dim, the first of its rows of `weight` and its row of `bias`;
            -1, -1 where there is none. [F, D + 1, 2], int64.
        weight: the matrices, one below the other. [S, O], dtype of values.
        bias: [C, O], dtype of values.
        padding_idx, sparse, fused, backend: as in `lookup`.

    Returns:
        [*, F, O] (shape of indices, then O), dtype of values.

    Raises:
        TypeError, ValueError, IndexError, RuntimeError: as `lookup`, or a row has no matrix.

    Deterministic: yes, whatever the number of threads.
    """
    check_call("lookup_linear", values, rows, indices)
    fields = groups.shape[0]
    if fields > 1 and (indices.dim() == 0 or indices.shape[-1] != fields):
        raise ValueError(
            f"lookup_linear: the last axis of indices must have {fields} fields, "
            f"got shape {list(indices.shape)}"
        )
    if weight.dtype != values.dtype or bias.dtype != values.dtype:
        raise ValueError(
            f"lookup_linear: weight and bias must be {values.dtype} like the values, "
            f"got {weight.dtype} and {bias.dtype}"
        )
    ops = namespace(choose(backend, values.device.type))
    linear = (rows.index, indices.reshape(-1).contiguous(), groups, weight, bias)
    where = (rows.num_rows, rows.width, rows.granule)
    if is_trained(values, fused, weight, bias):
        lead, last = trained_arguments("lookup_linear", rows, values, fused, sparse, padding_idx)
        out = call_trained(ops, "lookup_linear_trained", *lead, *linear, *where, *last)
    else:
        out = ops.lookup_linear(values, *linear, *where)
    return out.view(*indices.shape, weight.shape[1])


def _fake(
    values: Tensor, index: Tensor, indices: Tensor, groups: Tensor, weight: Tensor, *_: Any
) -> Any:
    return values.new_empty((indices.shape[0], weight.shape[1]))


def _fake_trained(values: Tensor, *rest: Any) -> Any:
    return _fake(values, *rest[LEAD - 1 :])


def _fake_backward(
    grad: Tensor, values: Tensor, index: Tensor, indices: Tensor, groups: Tensor, weight: Tensor,
    bias: Tensor, num_rows: int, width: int, granule: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    rows = values.new_empty((indices.shape[0], width))
    return rows, values.new_empty(weight.shape), values.new_empty(bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *linear, num_rows, width, granule, padding_idx, form, algorithm = inputs[LEAD:]
    ctx.where, ctx.padding_idx = (num_rows, width, granule), padding_idx
    saved = save_trained(ctx, inputs, form, algorithm)
    ctx.save_for_backward(inputs[0], *saved[1:], *linear)


def _register(name: str) -> None:
    ops, library = getattr(torch.ops, name), LIBRARIES[name]

    def trained(values: Tensor, *rest: Any) -> Any:
        return ops.lookup_linear(values, *rest[LEAD - 1 : LEAD + 7])

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        values, *state, index, indices, groups, weight, bias = ctx.saved_tensors
        num_rows, width, granule = ctx.where
        if ctx.needs_input_grad[LEAD + 3]:
            check_rows_are_old("lookup_linear", ctx, "the matrices")
        rows_grad, weight_grad, bias_grad = ops.lookup_linear_backward(
            grad.contiguous(),
            values,
            index,
            indices,
            groups,
            weight,
            bias,
            num_rows,
            width,
            granule,
        )
        looked_up = sequence(index, indices, None, (num_rows, granule), ctx.padding_idx)
        values_grad = values_gradient(ops, ctx, (values, *state), rows_grad, looked_up)
        return values_grad, *[None] * (LEAD + 2), weight_grad, bias_grad, *[None] * 6

    torch.library.register_fake(f"{name}::lookup_linear", _fake, lib=library)
    torch.library.register_fake(f"{name}::lookup_linear_trained", _fake_trained, lib=library)
    torch.library.register_fake(f"{name}::lookup_linear_backward", _fake_backward, lib=library)
    register_training(library, "lookup_linear_trained", trained, _setup, backward)


for _name in LIBRARIES:
    _register(_name)
