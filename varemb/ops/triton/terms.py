# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""What a run is summed from: the gradients of its lookups, each by the way it was looked up."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.arithmetic import widen
from varemb.ops.triton.checks import (
    check,
    check_bags,
    check_indices,
    check_like,
    check_limit,
    check_rows,
)
from varemb.ops.triton.launch import wide_dtype
from varemb.ops.triton.lookup_bag import MAX, bag_of_lookups
from varemb.ops.triton.rows import limited

_MEAN = 1


class Call(NamedTuple):
    """The arguments that every gradient operation takes."""

    grad: Tensor  # [L, D], or [G, D] with offsets
    index: Tensor  # type: ignore[assignment]  # [blocks, 4] or [words]
    indices: Tensor  # [L]
    offsets: Tensor | None  # [G] or [G + 1]
    per_sample_weights: Tensor | None  # [L]
    limit: Tensor | None  # [1] or [L]
    winners: Tensor | None  # [G, D], max only
    num_rows: int
    granule: int
    pooling: int
    padding_idx: int
    include_last_offset: bool


@triton.jit
def load_terms(
    grad_ptr, order_ptr, bag_ptr, weights_ptr, scales_ptr, limit_ptr, winners_ptr, width,
    limit_step, at, mask, dim, WIDE: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradients [n, D] of the lookups at places [n] of the order, and the numbers they reach."""
    lookup = tl.load(order_ptr + at, mask=mask, other=0)
    source = lookup
    if bag_ptr is not None:
        source = tl.load(bag_ptr + lookup, mask=mask, other=0)
    reach = limited(dim, limit_ptr, limit_step, lookup, mask)
    column = tl.arange(0, BLOCK_D)[None, :]
    inside = mask[:, None] & (column < reach[:, None])
    from_column = source[:, None] * width + column
    terms = widen(tl.load(grad_ptr + from_column, mask=inside, other=0.0), WIDE)
    if weights_ptr is not None:
        weight = widen(tl.load(weights_ptr + lookup, mask=mask, other=0.0), WIDE)
        terms = terms * weight[:, None]
    if scales_ptr is not None:
        terms = terms * tl.load(scales_ptr + source, mask=mask, other=0.0)[:, None]
    if winners_ptr is not None:
        winner = tl.load(winners_ptr + from_column, mask=inside, other=-1)
        terms = tl.where(winner == lookup[:, None], terms, 0.0)
    return terms, tl.where(mask, reach, 0)


def _mean_scales(call: Call, bags: int) -> Tensor:  # [G]
    """1 / number of lookups that count, per bag."""
    offsets = call.offsets
    assert offsets is not None
    lookups = call.indices.shape[0]
    before = torch.zeros(lookups + 1, dtype=torch.int64, device=offsets.device)
    torch.cumsum(call.indices != call.padding_idx, 0, out=before[1:])
    if not call.include_last_offset:
        offsets = torch.cat([offsets, offsets.new_full((1,), lookups)])
    counts = before[offsets.long()].diff()
    return 1 / counts.clamp(min=1).to(wide_dtype(call.grad.dtype))


def check_call(op: str, call: Call, numbers: int) -> int:
    """The contract of a gradient operation; the number of bags, or of lookups without bags."""
    grad, lookups = call.grad, call.indices.shape[0]
    check(grad.dim() == 2, f"{op}: grad must be two-dimensional")
    check_rows(op, call.index, call.num_rows, grad.shape[1], call.granule)
    check_indices("coalesce", call.indices, call.num_rows, call.index, numbers)
    sources = lookups
    if call.offsets is not None:
        sources = check_bags(op, call.offsets, call.indices, call.include_last_offset)
    check_like(op, "grad", grad, (sources, grad.shape[1]), grad)
    if call.per_sample_weights is not None:
        check_like(op, "per_sample_weights", call.per_sample_weights, (lookups,), grad)
    is_max = call.offsets is not None and call.pooling == MAX
    check(is_max == (call.winners is not None), f"{op}: winners belong to max, and only to max")
    return sources


class Terms(NamedTuple):
    """What the kernels read besides the sorted order."""

    call: Call
    bag: Tensor | None  # [L] int64, -1 outside the bags
    scales: Tensor | None  # [G], mean only
    limit_step: int  # from one lookup's limit to the next, 0 or 1

    def options(self) -> dict[str, Any]:
        """The arguments of `load_terms` by the kernels' names."""
        return {
            "grad_ptr": self.call.grad,
            "bag_ptr": self.bag,
            "weights_ptr": self.call.per_sample_weights,
            "scales_ptr": self.scales,
            "limit_ptr": self.call.limit,
            "winners_ptr": self.call.winners,
            "limit_step": self.limit_step,
        }


def terms_of(op: str, call: Call, numbers: int) -> Terms:
    """Checks a call and finds the bag of each lookup."""
    sources = check_call(op, call, numbers)
    lookups = call.indices.shape[0]
    bag, scales = None, None
    if call.offsets is not None:
        bag = bag_of_lookups(call.offsets, lookups, call.include_last_offset)
        if call.pooling == _MEAN:
            scales = _mean_scales(call, sources)
    return Terms(call, bag, scales, check_limit(op, call.limit, lookups))
