"""What every operation means, in plain PyTorch. Kernels must agree with it, output and gradient.

Arguments are those of `schemas.py`. Sums run in the order of the lookups, in float32 for 16-bit
rows (float64 for float64), like the kernels'.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_PER_BLOCK = 24
SUM, MEAN, MAX = 0, 1, 2
SGD, ADAGRAD, ROW_WISE_ADAGRAD, ADAM = 0, 1, 2, 3


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_indices(op: str, indices: Tensor, num_rows: int) -> None:
    bad = ((indices < 0) | (indices >= num_rows)).nonzero()
    if bad.numel():
        at = int(bad[0, 0])
        raise IndexError(
            f"{op}: indices must be in [0, {num_rows}), got {int(indices[at])} at position {at}"
        )


def stored_dims(index: Tensor, num_rows: int, granule: int) -> Tensor:  # [N] int64
    """Numbers that each row takes in the flat values."""
    units = index[:, 1:].contiguous().view(torch.uint8).reshape(-1)[:num_rows]
    return units.long() * granule


def locate(index: Tensor, rows: Tensor, width: int, granule: int) -> tuple[Tensor, Tensor]:
    """Offset and dim of each of the given rows. [n], [n] int64."""
    block, slot = rows.long() // ROWS_PER_BLOCK, rows.long() % ROWS_PER_BLOCK
    picked = index[block]  # [n, 4]
    units = picked[:, 1:].contiguous().view(torch.uint8).reshape(-1, ROWS_PER_BLOCK).long()
    before = torch.arange(ROWS_PER_BLOCK, device=rows.device) < slot[:, None]
    offset = picked[:, 0] + granule * (units * before).sum(1)
    dim = units.gather(1, slot[:, None])[:, 0] * granule
    return offset, dim.clamp(max=width)


def _places(
    index: Tensor, indices: Tensor, limit: Tensor | None, width: int, granule: int
) -> tuple[Tensor, Tensor]:  # [L, D] int64, [L, D] bool
    """Where each column of each lookup lies in the flat values, and whether it exists."""
    offset, dim = locate(index, indices, width, granule)
    if limit is not None:
        dim = torch.minimum(dim, limit.long().clamp(min=0))
    columns = torch.arange(width, device=indices.device)
    inside = columns < dim[:, None]
    return torch.where(inside, offset[:, None] + columns, 0), inside


def lookup(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    limit: Tensor | None,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l, k] = values[offset + k] for k < min(d[r], limit), r = indices[l]; else 0. [L, D]"""
    _check_indices("lookup", indices, num_rows)
    places, inside = _places(index, indices, limit, width, granule)
    if values.numel() == 0:
        return values.new_zeros(places.shape)
    return torch.where(inside, values[places], values.new_zeros(()))


def _bag_of(offsets: Tensor, lookups: int, include_last_offset: bool) -> tuple[Tensor, int]:
    """The bag of each lookup [covered] and the number of bags G."""
    if offsets.numel() and (int(offsets[0]) != 0 or int(offsets[-1]) > lookups):
        raise ValueError(
            f"lookup_bag: offsets must start at 0 and not pass the number of indices {lookups}, "
            f"got {int(offsets[0])} to {int(offsets[-1])}"
        )
    if not include_last_offset:
        offsets = torch.cat([offsets, offsets.new_tensor([lookups])])
    counts = offsets.diff()
    if bool((counts < 0).any()):
        raise ValueError("lookup_bag: offsets must not decrease")
    return torch.arange(counts.numel(), device=offsets.device).repeat_interleave(
        counts.long()
    ), counts.numel()


def _scales(
    bag: Tensor,
    bags: int,
    kept: Tensor,
    per_sample_weights: Tensor | None,
    mode: int,
    dtype: torch.dtype,
) -> Tensor:  # [covered]
    """What each lookup is multiplied with."""
    if mode == MEAN:
        counts = torch.zeros(bags, dtype=dtype, device=bag.device).index_add(0, bag, kept.to(dtype))
        return (1 / counts.clamp(min=1))[bag]
    if per_sample_weights is None:
        return torch.ones(bag.numel(), dtype=dtype, device=bag.device)
    return per_sample_weights[: bag.numel()].to(dtype)


def lookup_bag(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor,
    per_sample_weights: Tensor | None,
    limit: Tensor | None,
    num_rows: int,
    width: int,
    granule: int,
    mode: int,
    padding_idx: int,
    include_last_offset: bool,
) -> tuple[Tensor, Tensor]:
    """Sum, mean or max of the zero-padded rows of each bag; an empty bag is zeros. [G, D]"""
    _check_indices("lookup_bag", indices, num_rows)
    bag, bags = _bag_of(offsets, indices.numel(), include_last_offset)
    rows = lookup(values, index, indices, limit, num_rows, width, granule)[: bag.numel()]
    kept = indices[: bag.numel()] != padding_idx
    if mode == MAX:
        return _largest(rows, bag, bags, kept)
    wide = _wide(values.dtype)
    scales = _scales(bag, bags, kept, per_sample_weights if mode == SUM else None, mode, wide)
    terms = rows.to(wide)[kept]
    if mode == SUM:
        terms = terms * scales[kept][:, None]
    out = torch.zeros(bags, width, dtype=wide, device=values.device).index_add(0, bag[kept], terms)
    if mode == MEAN:
        out = out / torch.bincount(bag[kept], minlength=bags).clamp(min=1)[:, None]
    return out.to(values.dtype), values.new_empty((0, width), dtype=torch.int32)


def _largest(rows: Tensor, bag: Tensor, bags: int, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The largest number of each column and which lookup gave it, the first of equals."""
    out = rows.new_zeros(bags, rows.shape[1])
    winners = torch.full(out.shape, -1, dtype=torch.int32, device=rows.device)
    for g in bag[kept].unique().tolist():
        members = ((bag == g) & kept).nonzero()[:, 0]
        candidates = rows[members]
        best = candidates.max(0).values  # NaN wins
        is_best = (candidates == best) | (candidates.isnan() & best.isnan())
        out[g] = best
        winners[g] = members[is_best.int().argmax(0)].int()
    return out, winners


def lookup_bag_weights_backward(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    offsets: Tensor,
    limit: Tensor | None,
    num_rows: int,
    granule: int,
    padding_idx: int,
    include_last_offset: bool,
) -> Tensor:
    """out[l] = row of indices[l] times the gradient of its bag; 0 for padding_idx. [L]"""
    _check_indices("lookup_bag_weights_backward", indices, num_rows)
    bag, _ = _bag_of(offsets, indices.numel(), include_last_offset)
    rows = lookup(values, index, indices, limit, num_rows, grad.shape[1], granule)[: bag.numel()]
    wide = _wide(values.dtype)
    dots = (rows.to(wide) * grad[bag].to(wide)).sum(1)
    out = values.new_zeros(indices.numel())
    out[: bag.numel()] = torch.where(indices[: bag.numel()] != padding_idx, dots, 0.0).to(out.dtype)
    return out


def _contributions(
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
) -> tuple[Tensor, Tensor]:  # [m] int64, [m]
    """Every (place in the flat values, gradient) of the call, in the order of the lookups."""
    _check_indices("coalesce", indices, num_rows)
    wide = _wide(grad.dtype)
    kept = indices != padding_idx
    if offsets is None:
        terms = grad.to(wide)
    else:
        bag, bags = _bag_of(offsets, indices.numel(), include_last_offset)
        indices, kept = indices[: bag.numel()], kept[: bag.numel()]
        limit = limit if limit is None or limit.numel() == 1 else limit[: bag.numel()]
        scales = _scales(bag, bags, kept, per_sample_weights, mode, wide)
        terms = grad.to(wide)[bag] * scales[:, None]
        if winners is not None:
            lookups = torch.arange(bag.numel(), device=bag.device)
            terms = torch.where(winners[bag] == lookups[:, None], terms, 0.0)
    places, inside = _places(index, indices, limit, grad.shape[1], granule)
    inside = inside & kept[:, None]
    return places[inside], terms[inside]


def _summed(places: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:  # [m], [m] -> [n], [n]
    """The distinct places, ascending, and the sum of the terms of each."""
    touched, slot = places.unique(return_inverse=True)
    return touched, terms.new_zeros(touched.numel()).index_add(0, slot, terms)


def coalesce_dense(
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
    numbers: int,
) -> Tensor:
    """The gradient of the flat values. [E]"""
    places, terms = _contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset,
    )  # fmt: skip
    return terms.new_zeros(numbers).index_add(0, places, terms).to(grad.dtype)


def coalesce(
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
    numbers: int,
) -> tuple[Tensor, Tensor]:
    """The touched numbers alone: their places, ascending, and gradients. [n] int64, [n]"""
    places, terms = _contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset,
    )  # fmt: skip
    touched, sums = _summed(places, terms)
    return touched, sums.to(grad.dtype)


def lookup_linear(
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> Tensor:
    """out[l] = row @ weight[first : first + d] + bias[group] of the row's field and dim. [L, O]"""
    _check_indices("lookup_linear", indices, num_rows)
    rows = lookup(values, index, indices, None, num_rows, width, granule)
    matrices, inside, group = _matrices(index, indices, groups, weight, width, granule)
    wide = _wide(values.dtype)
    taken = torch.where(inside[:, :, None], weight.to(wide)[matrices], 0.0)  # [L, D, O]
    out = torch.bmm(rows.to(wide)[:, None], taken)[:, 0] + bias.to(wide)[group]
    return out.to(values.dtype)


def _matrices(
    index: Tensor, indices: Tensor, groups: Tensor, weight: Tensor, width: int, granule: int
) -> tuple[Tensor, Tensor, Tensor]:  # [L, D], [L, D] bool, [L]
    """The matrix row of each column of each lookup, whether it exists, and the bias row."""
    _, dim = locate(index, indices, width, granule)
    field = torch.arange(indices.numel(), device=indices.device) % groups.shape[0]
    first, group = groups[field, dim].unbind(1)
    if bool((group < 0).any()):
        at = int((group < 0).nonzero()[0, 0])
        raise ValueError(
            f"lookup_linear: no matrix for rows of dim {int(dim[at])} in field {int(field[at])}"
        )
    columns = torch.arange(width, device=indices.device)
    inside = columns < dim[:, None]
    return torch.where(inside, first[:, None] + columns, 0), inside, group


def lookup_linear_backward(
    grad: Tensor,
    values: Tensor,
    index: Tensor,
    indices: Tensor,
    groups: Tensor,
    weight: Tensor,
    bias: Tensor,
    num_rows: int,
    width: int,
    granule: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the looked-up rows [L, D], of weight [S, O] and of bias [C, O]."""
    rows = lookup(values, index, indices, None, num_rows, width, granule)
    matrices, inside, group = _matrices(index, indices, groups, weight, width, granule)
    wide = _wide(values.dtype)
    grad, rows = grad.to(wide), rows.to(wide)
    taken = torch.where(inside[:, :, None], weight.to(wide)[matrices], 0.0)
    row_grad = torch.bmm(taken, grad[:, :, None])[:, :, 0]
    outer = rows[:, :, None] * grad[:, None]  # [L, D, O]
    weight_grad = torch.zeros_like(weight, dtype=wide).index_add(0, matrices[inside], outer[inside])
    bias_grad = torch.zeros_like(bias, dtype=wide).index_add(0, group, grad)
    return row_grad.to(values.dtype), weight_grad.to(values.dtype), bias_grad.to(values.dtype)


def update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
    index: Tensor,
    positions: Tensor,
    grad: Tensor,
    num_rows: int,
    width: int,
    granule: int,
    algorithm: int,
) -> None:
    """One optimizer step on the numbers at `positions`; nothing else changes."""
    lr, weight_decay, eps, beta1, beta2, step = hyper.tolist()
    wide = _wide(values.dtype)
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
        ends = stored_dims(index, num_rows, granule).cumsum(0)
        rows = torch.searchsorted(ends, positions, right=True)
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
    values[positions] = new.to(values.dtype)


def coalesce_update_(
    values: Tensor,
    state1: Tensor | None,
    state2: Tensor | None,
    hyper: Tensor,
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
    places, terms = _contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset,
    )  # fmt: skip
    touched, sums = _summed(places, terms)
    update_(
        values, state1, state2, hyper, index, touched, sums, num_rows, grad.shape[1], granule,
        algorithm,
    )  # fmt: skip
