"""`update`: an optimizer step on the touched numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference.coalesce import contributions, summed
from varemb.ops.reference.rounding import check_rounding, round_stochastically
from varemb.ops.reference.rows import refuse_paged, rows_at, wide_dtype

SGD, ADAGRAD, ROW_WISE_ADAGRAD, ADAM = 0, 1, 2, 3


def update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    index: Tensor,
    positions: Tensor,
    grad: Tensor,
    num_rows: int,
    width: int,
    granule: int,
    algorithm: int,
) -> None:
    """One optimizer step on the numbers at `positions`; nothing else changes."""
    refuse_paged("update", index)
    _step(
        values, state1, state2, hyper, rounding, index, positions, grad, num_rows, granule,
        algorithm,
    )  # fmt: skip


def _step(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    index: Tensor,
    positions: Tensor,
    grad: Tensor,
    num_rows: int,
    granule: int,
    algorithm: int,
) -> None:
    check_rounding(rounding, values.dtype)
    lr, weight_decay, eps, beta1, beta2, step = hyper.tolist()
    wide = wide_dtype(values.dtype)
    old = values[positions].to(wide)
    g = grad.to(wide) + weight_decay * old
    if algorithm == SGD:
        new = old - lr * g
    elif algorithm == ADAGRAD:
        assert state1 is not None
        state1[positions] += g * g
        new = old - lr * g / (state1[positions].sqrt() + eps)
    elif algorithm == ROW_WISE_ADAGRAD:
        assert state1 is not None
        rows = rows_at(index, positions, num_rows, granule)
        touched, slot = rows.unique(return_inverse=True)
        squares = g.new_zeros(touched.numel()).index_add(0, slot, g * g)
        state1[touched] += squares / torch.bincount(slot, minlength=touched.numel())
        new = old - lr * g / (state1[rows].sqrt() + eps)
    else:
        assert state1 is not None and state2 is not None
        state1[positions] = beta1 * state1[positions] + (1 - beta1) * g
        state2[positions] = beta2 * state2[positions] + (1 - beta2) * g * g
        mean = state1[positions] / (1 - beta1**step)
        new = old - lr * mean / ((state2[positions] / (1 - beta2**step)).sqrt() + eps)
    values[positions] = round_stochastically(new, positions, rounding, values.dtype)


def coalesce_update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    rounding: Tensor | None,
    grad: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor | None,
    per_sample_weights: Tensor | None,
    limit: Tensor | None,
    winners: Tensor | None,
    num_rows: int,
    granule: int,
    mode: int,
    padding_idx: int,
    include_last_offset: bool,
    algorithm: int,
) -> None:
    """`coalesce`, then `update_`, the sums kept in the wide dtype in between."""
    places, terms = contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset, values.numel(),
    )  # fmt: skip
    touched, sums = summed(places, terms)
    # Through `data`: further lookups of the same step still go backward, as with kernels.
    state1, state2 = (None if tensor is None else tensor.data for tensor in (state1, state2))
    _step(
        values.data, state1, state2, hyper, rounding, index, touched, sums, num_rows, granule,
        algorithm,
    )  # fmt: skip
