"""`coalesce`: the gradient of the flat values, repeated rows summed."""

from __future__ import annotations

import torch
from torch import Tensor

from varemb.ops.reference.lookup_bag import bag_of, scales_of
from varemb.ops.reference.rows import (
    check_indices,
    places_of,
    refuse_paged,
    wide_dtype,
)


def contributions(
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
) -> tuple[Tensor, Tensor]:  # [m] int64, [m]
    """Every (place in the flat values, gradient) of the call, in the order of the lookups."""
    check_indices("coalesce", indices, num_rows, index, numbers)
    wide = wide_dtype(grad.dtype)
    kept = indices != padding_idx
    if offsets is None:
        terms = grad.to(wide)
    else:
        bag, bags = bag_of(offsets, indices.numel(), include_last_offset)
        indices, kept = indices[: bag.numel()], kept[: bag.numel()]
        limit = limit if limit is None or limit.numel() == 1 else limit[: bag.numel()]
        scales = scales_of(bag, bags, kept, per_sample_weights, mode, wide)
        terms = grad.to(wide)[bag] * scales[:, None]
        if winners is not None:
            lookups = torch.arange(bag.numel(), device=bag.device)
            terms = torch.where(winners[bag] == lookups[:, None], terms, 0.0)
    places, inside = places_of(index, indices, limit, num_rows, grad.shape[1], granule)
    inside = inside & kept[:, None]
    return places[inside], terms[inside]


def summed(places: Tensor, terms: Tensor) -> tuple[Tensor, Tensor]:  # [m], [m] -> [n], [n]
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
    places, terms = contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset, numbers,
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
    refuse_paged("coalesce", index)
    places, terms = contributions(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule, mode,
        padding_idx, include_last_offset, numbers,
    )  # fmt: skip
    touched, sums = summed(places, terms)
    return touched, sums.to(grad.dtype)
