# mypy: disable-error-code="no-untyped-def, untyped-decorator"
# ruff: noqa: N803
"""Lookups sorted by row, so that those of one row form a run; without waiting for the device."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from varemb.ops.triton.launch import OPTIONS, guard, rows_block
from varemb.ops.triton.rows import look_up

# A class of rows takes the dims up to 8, 32, 128, 512 and the rest.
NARROWEST = 8
_NARROWEST = tl.constexpr(NARROWEST)


class Runs(NamedTuple):
    """Lookups in the order of their rows; those that train nothing come last."""

    order: Tensor  # [L] int64, the lookups
    keys: Tensor  # [L], class * num_rows + row of each, C * num_rows for those that train nothing
    before: Tensor  # [L + 1] int64, runs that begin before each place of the order
    starts: Tensor  # [L + 1] int64, where each run begins, then where the last one ends
    bounds: Tensor  # [C + 1] int64, the first run of each class, then the end
    reach: Tensor  # [L] int32 by lookup, numbers that it may train; empty unless asked for


@triton.jit
def lookup_keys_kernel(
    index_ptr,  # [blocks, 4] or [words]
    indices_ptr,  # [L]
    bag_ptr,  # [L], -1 outside the bags, or None
    limit_ptr,  # [1] or [L], or None
    keys_ptr,  # [L]
    reach_ptr,  # [L], or None
    lookups,
    num_rows,
    width,
    granule,
    chunks,
    numbers,
    limit_step,
    padding_idx,
    CLASSES: tl.constexpr,
    ROWS: tl.constexpr,
):
    # A program takes ROWS lookups and writes what each is sorted by. Deterministic.
    lookup = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = lookup < lookups
    row = tl.load(indices_ptr + lookup, mask=mask, other=0).to(tl.int64)
    is_row = (row >= 0) & (row < num_rows)
    tl.device_assert(is_row | (lookup >= lookups), "coalesce: an index is outside the table")
    kept = mask & is_row & (row != padding_idx)
    if bag_ptr is not None:
        kept = kept & (tl.load(bag_ptr + lookup, mask=mask, other=-1) >= 0)
    key = row
    if CLASSES > 1 or reach_ptr is not None:
        _, _, dim, _ = look_up(
            index_ptr, indices_ptr, None, lookup, kept, num_rows, width, granule, chunks, numbers,
            0,
        )  # fmt: skip
        for lower in tl.static_range(CLASSES - 1):
            key += tl.where(dim > (_NARROWEST << (2 * lower)), num_rows, 0)
        if reach_ptr is not None:
            _, _, dim, _ = look_up(
                index_ptr, indices_ptr, limit_ptr, lookup, kept, num_rows, width, granule, chunks,
                numbers, limit_step,
            )  # fmt: skip
            tl.store(reach_ptr + lookup, tl.where(kept, dim, 0), mask=mask)
    key = tl.where(kept, key, (tl.zeros_like(key) + num_rows) * CLASSES)
    tl.store(keys_ptr + lookup, key.to(keys_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mark_starts_kernel(
    keys_ptr,  # [L], sorted
    before_ptr,  # [L + 1]
    starts_ptr,  # [L + 1]
    lookups,
    ROWS: tl.constexpr,
):
    # A program takes ROWS places of the order; the first place of a run writes where it is.
    # Deterministic.
    at = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [ROWS]
    mask = at < lookups
    run = tl.load(before_ptr + at, mask=mask, other=0)
    after = tl.load(before_ptr + at + 1, mask=mask, other=0)
    tl.store(starts_ptr + run, at, mask=mask & (after > run))
    tl.store(starts_ptr + after, tl.zeros_like(at) + lookups, mask=at == lookups - 1)


def find_runs(keys: Tensor) -> tuple[Tensor, Tensor]:  # [L] sorted -> [L + 1], [L + 1]
    """`before` and `starts` of `Runs`; at least one key."""
    count = keys.shape[0]
    heads = torch.ones(count, dtype=torch.int64, device=keys.device)
    heads[1:] = keys[1:] != keys[:-1]
    before = torch.zeros(count + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum(heads, 0, out=before[1:])
    starts = torch.empty(count + 1, dtype=torch.int64, device=keys.device)
    rows = rows_block(1, 1024, count, keys)
    with guard(keys):
        mark_starts_kernel[(triton.cdiv(count, rows),)](
            keys_ptr=keys,
            before_ptr=before,
            starts_ptr=starts,
            lookups=count,
            ROWS=rows,
            **OPTIONS,
        )
    return before, starts


def sort_lookups(
    rows_at: dict[str, Any],
    indices: Tensor,
    bag: Tensor | None,
    limit: Tensor | None,
    limit_step: int,
    padding_idx: int,
    classes: int,
    *,
    needs_reach: bool = False,
) -> Runs:
    """The runs of a call with at least one lookup; rows ascend within a class.

    Args:
        rows_at: where the rows are, from `places`.
        indices, limit, padding_idx: as in `lookup_bag`.
        bag: the bag of each lookup, -1 for none; None without bags. [L], int64.
        limit_step: from one lookup's limit to the next, 0 or 1.
        classes: C, classes of dims to sort by first.
        needs_reach: fill `reach`.

    Deterministic: yes, the sort is stable.
    """
    lookups, device, num_rows = indices.shape[0], indices.device, rows_at["num_rows"]
    is_small = classes * num_rows < 2**31
    keys = torch.empty(lookups, dtype=torch.int32 if is_small else torch.int64, device=device)
    reach = torch.empty(lookups if needs_reach else 0, dtype=torch.int32, device=device)
    # 32 bytes of index per lookup
    rows = rows_block(32, 4096, lookups, indices)
    with guard(indices):
        lookup_keys_kernel[(triton.cdiv(lookups, rows),)](
            **rows_at,
            indices_ptr=indices,
            bag_ptr=bag,
            limit_ptr=limit,
            keys_ptr=keys,
            reach_ptr=reach if needs_reach else None,
            lookups=lookups,
            limit_step=limit_step,
            padding_idx=padding_idx,
            CLASSES=classes,
            ROWS=rows,
            **OPTIONS,
        )
    keys, order = torch.sort(keys, stable=True)
    before, starts = find_runs(keys)
    first_keys = torch.arange(classes + 1, dtype=keys.dtype, device=device) * num_rows
    bounds = before[torch.searchsorted(keys, first_keys)]
    return Runs(order, keys, before, starts, bounds, reach)
