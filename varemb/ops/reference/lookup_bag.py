"""`lookup_bag`: pooled rows of different dims."""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference.lookup import lookup
from varemb.ops.reference.rows import check_indices, wide_dtype

SUM, MEAN, MAX = 0, 1, 2


def bag_of(offsets: Tensor, lookups: int, include_last_offset: bool) -> tuple[Tensor, int]:
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


def scales_of(
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
    check_indices("lookup_bag", indices, num_rows, index, values.numel())
    bag, bags = bag_of(offsets, indices.numel(), include_last_offset)
    rows = lookup(values, index, indices, limit, num_rows, width, granule)[: bag.numel()]
    kept = indices[: bag.numel()] != padding_idx
    if mode == MAX:
        return _largest(rows, bag, bags, kept)
    wide = wide_dtype(values.dtype)
    scales = scales_of(bag, bags, kept, per_sample_weights if mode == SUM else None, mode, wide)
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
    check_indices("lookup_bag_weights_backward", indices, num_rows, index, values.numel())
    bag, _ = bag_of(offsets, indices.numel(), include_last_offset)
    rows = lookup(values, index, indices, limit, num_rows, grad.shape[1], granule)[: bag.numel()]
    wide = wide_dtype(values.dtype)
    dots = (rows.to(wide) * grad[bag].to(wide)).sum(1)
    out = values.new_zeros(indices.numel())
    out[: bag.numel()] = torch.where(indices[: bag.numel()] != padding_idx, dots, 0.0).to(out.dtype)
    return out
