"""Water-filling: hands out a budget of numbers to rows, exactly, wide rows for frequent ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# Below this a weight would overflow nu; such rows stand at the end of the line with the rows of
# weight 0.
_LEAST_WEIGHT = 1e-200


def fill_budget(
    counts: Floats,  # [N]
    caps: Ints,  # [N]
    budget: int,
    *,
    power: float = 1.0,
    min_dim: int = 1,
) -> Ints:  # [N]
    """Dims clip(nu * count^power, min_dim, cap), made whole, whose sum is the budget.

    The sum is exactly `budget`, or every row has its cap when the budget allows it. Of two rows
    with the same cap the more frequent one is never the narrower one; ties go to the earlier row.

    Args:
        counts: how often each row is looked up. [N], finite, >= 0.
        caps: widest dim of each row. [N], >= min_dim.
        budget: numbers to hand out.
        power: 1 is proportional to the count, 0 the same for all rows.
        min_dim: the narrowest row.

    Raises:
        ValueError: the budget is below min_dim for every row, min_dim is negative or above a cap,
            or power is negative or not finite.

    Deterministic: yes.

    Example:
        >>> fill_budget(np.array([100.0, 10.0, 10.0, 1.0]), np.full(4, 8), 12)
        array([8, 2, 1, 1])
    """
    least = min_dim * len(counts)
    if not (np.isfinite(power) and power >= 0):
        raise ValueError(f"fill_budget: power must be finite and >= 0, got {power}")
    if min_dim < 0 or (caps < min_dim).any():
        raise ValueError(
            f"fill_budget: min_dim must be in 0..{caps.min(initial=min_dim)}, got {min_dim}"
        )
    if budget < least:
        raise ValueError(
            f"fill_budget: budget must be at least {min_dim} * {len(counts)} rows = {least}, "
            f"got {budget}"
        )
    if budget >= int(caps.sum()):
        return caps.copy()
    top = counts.max()
    weights = np.power(counts / top if top > 0 else np.zeros_like(counts), power)
    light = weights < _LEAST_WEIGHT
    left = budget - int(caps[~light].sum())
    if left < min_dim * int(light.sum()):
        return _round(
            _level(np.where(light, 0.0, weights), caps, budget, min_dim), counts, caps, budget
        )
    # Every row with a weight is full; the others share what is left equally.
    dims = caps.copy()
    level = _level(np.ones(int(light.sum())), caps[light], left, min_dim)
    dims[light] = _round(level, counts[light], caps[light], left)
    return dims


def split_budget(share: float, rows: tuple[int, int], budget: int, width: int) -> tuple[int, int]:
    """Numbers of two groups of rows: the first gets a share, as far as both groups can use theirs.

    Each group gets at least a number and at most `width` numbers per row; what does not fit moves
    to the other group.

    Args:
        share: of the first group, in [0, 1].
        rows: of both groups.
        budget: numbers in all; what is above `width` per row is left unused.
        width: the widest row.

    Raises:
        ValueError: the budget is smaller than a number per row.

    Example:
        >>> split_budget(0.5, (10, 90), 400, 8), split_budget(0.0, (10, 90), 400, 8)
        ((80, 320), (10, 390))
    """
    if budget < sum(rows):
        raise ValueError(
            f"split_budget: budget must be at least a number for each of {sum(rows)} rows, "
            f"got {budget}"
        )
    budget = min(budget, width * sum(rows))
    least = max(rows[0], budget - width * rows[1])
    most = min(width * rows[0], budget - rows[1])
    first = min(max(round(share * budget), least), most)
    return first, budget - first


def _level(weights: Floats, caps: Ints, budget: int, min_dim: int) -> Floats:
    """clip(nu * weights, min_dim, caps) with the largest nu whose sum does not exceed the
    budget."""
    low = float(np.log(1e-300))
    high = float(np.log(caps.max()) - np.log(weights[weights > 0].min()))
    # Halving 64 times leaves less than the spacing of two logarithms.
    for _ in range(64):
        middle = (low + high) / 2
        if np.clip(np.exp(middle) * weights, min_dim, caps).sum() <= budget:
            low = middle
        else:
            high = middle
    level: Floats = np.clip(np.exp(low) * weights, min_dim, caps)
    return level


def _round(level: Floats, counts: Floats, caps: Ints, budget: int) -> Ints:
    """Whole dims that sum to the budget: floor, then one more each for the largest fractions."""
    dims = np.floor(level).astype(np.int64)
    order = np.lexsort((-counts, dims - level))
    left = budget - int(dims.sum())
    while left > 0:
        open_rows = order[dims[order] < caps[order]][:left]
        dims[open_rows] += 1
        left -= len(open_rows)
    return dims
