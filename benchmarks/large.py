"""Dims and lookups of tables too large for a ``Case``: made in slices, without a number per row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.cases import Batch

_ROWS_AT_A_TIME = 1 << 22


def multiplier_of(rows: int) -> int:
    """A number without common divisor with N: rank * multiplier mod N then reaches every row."""
    candidate = max(1, round(rows * 0.618))
    while math.gcd(candidate, rows) != 1:
        candidate += 1
    return candidate


def make_dims(
    rows: int, law: Sequence[tuple[float, int]], device: torch.device
) -> Tensor:  # [N], uint8, on the host
    """Dims by popularity, popular rows anywhere in the table; made in slices.

    Args:
        rows: N, below 2^30.
        law: share of the rows and their dim, the most popular rows first.
        device: where a slice is made.
    """
    inverse = pow(multiplier_of(rows), -1, rows)
    bounds, total = [], 0.0
    for share, _ in law[:-1]:
        total += share
        bounds.append(round(total * rows))
    limits = torch.tensor(bounds, device=device)
    sizes = torch.tensor([dim for _, dim in law], dtype=torch.uint8, device=device)
    out = torch.empty(rows, dtype=torch.uint8)
    for first in range(0, rows, _ROWS_AT_A_TIME):
        stop = min(rows, first + _ROWS_AT_A_TIME)
        row = torch.arange(first, stop, device=device)
        rank = row * inverse % rows  # below 2^60 while N is below 2^30
        out[first:stop] = sizes[torch.bucketize(rank, limits, right=True)].cpu()
    return out


def make_batches(
    rows: int,
    zipf: float,
    bags: int,
    pooling: int,
    count: int,
    device: torch.device,
    *,
    seed: int = 0,
) -> list[Batch]:
    """Fresh lookups whose ranks follow 1 / rank^zipf, drawn from the continuous law.

    Args:
        zipf: the exponent s, not 1; 0 asks for all rows alike.
        bags, pooling: G bags of so many lookups each.
        count: batches.
    """
    generator = torch.Generator(device).manual_seed(seed)
    offsets = torch.arange(0, bags * pooling + 1, pooling, device=device)  # [G + 1]
    power = 1 - zipf
    out = []
    for _ in range(count):
        draws = torch.rand(
            bags * pooling, dtype=torch.float64, device=device, generator=generator
        )  # [L]
        ranks = ((rows**power - 1) * draws + 1).pow(1 / power).long() - 1
        indices = ranks.clamp_(0, rows - 1) * multiplier_of(rows) % rows
        out.append(Batch(indices, offsets))
    return out
