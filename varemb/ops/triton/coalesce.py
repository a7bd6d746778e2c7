"""The gradient of a call with one entry per distinct row: dense and flat, or sparse."""

import torch
from torch import Tensor

from varemb.ops import reference
from varemb.ops.triton.gradient import Gradient, Sink
from varemb.ops.triton.terms import Call, check_call


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
    pooling: int,
    padding_idx: int,
    include_last_offset: bool,
    numbers: int,
) -> Tensor:
    """The gradient of the flat values: each row's sum over its lookups, zeros elsewhere.

    Args:
        grad: gradient of the rows [L, D], or with offsets of the bags [G, D].
        index: packed [blocks, 4] or paged [words] index, int64.
        indices: rows that were read, repeats allowed; padding_idx has no gradient. [L]
        offsets, per_sample_weights, limit, pooling, include_last_offset: as in `lookup_bag`.
        winners: the lookup that gave each number, for max. [G, D], int32.
        num_rows, granule: as in `Rows`.
        padding_idx: row without gradient; -1 for none.
        numbers: E.

    Returns:
        [E], dtype of grad.

    Raises:
        ValueError, IndexError: as `lookup_bag`.

    Deterministic: yes. Lookups are added in their order; a row looked up more than 256 times in
    pieces of the sorted order.
    """
    call = Call(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule,
        pooling, padding_idx, include_last_offset,
    )  # fmt: skip
    out = torch.zeros((numbers,), dtype=grad.dtype, device=grad.device)
    if indices.shape[0] == 0:
        check_call("coalesce_dense", call, numbers)
        return out
    Gradient("coalesce_dense", call, numbers).sum_into(Sink(out))
    return out


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
    pooling: int,
    padding_idx: int,
    include_last_offset: bool,
    numbers: int,
) -> tuple[Tensor, Tensor]:
    """The touched numbers alone: of each distinct row the numbers that a lookup may train.

    Args: as `coalesce_dense`, of a packed table.

    Returns:
        Their places in the flat values, ascending [n] int64, and gradients [n], dtype of grad.

    Raises:
        ValueError, IndexError: as `lookup_bag`.

    Deterministic: yes, as `coalesce_dense`. Synchronizes: yes, n is the length of the result.
    """
    reference.refuse_paged("coalesce", index)
    call = Call(
        grad, index, indices, offsets, per_sample_weights, limit, winners, num_rows, granule,
        pooling, padding_idx, include_last_offset,
    )  # fmt: skip
    if indices.shape[0] == 0:
        check_call("coalesce", call, numbers)
        empty = torch.empty((0,), dtype=grad.dtype, device=grad.device)
        return empty.long(), empty
    gradient = Gradient("coalesce", call, numbers, is_ascending=True, needs_reach=True)
    runs = gradient.runs
    # What a run reaches is the most that one of its lookups does. [runs], padded to [L]
    run_of = runs.before[1:] - 1
    reach = torch.zeros_like(run_of)
    reach.scatter_reduce_(0, run_of, runs.reach[runs.order].long(), "amax")
    ends = torch.cumsum(reach, 0)
    touched = int(ends[-1])
    positions = torch.empty((touched,), dtype=torch.int64, device=grad.device)
    numbers_out = torch.empty((touched,), dtype=grad.dtype, device=grad.device)
    gradient.sum_into(Sink(numbers_out, positions, ends - reach))
    return positions, numbers_out
