"""Water-filling: hands out a budget of numbers to rows, all of it, wide rows for frequent ids."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from varemb.rows import units_of

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
    granules: Ints | int = 1,
) -> Ints:  # [N]
    """Dims clip(nu * count^power, min_dim, cap), made whole, whose sum is the budget.

    What is handed out is what a table stores: each dim rounded up to a multiple of its granule. In
    granules of 1 the sum is exactly `budget`, or every row has its cap when the budget allows it.
    In larger ones less than the smallest granule of a row below its cap is left over. Of two rows
    with the same cap and granule the more frequent one is never the narrower one; ties go to the
    earlier row.

    Args:
        counts: how often each row is looked up. [N], finite, >= 0.
        caps: widest dim of each row. [N], >= min_dim.
        budget: numbers to hand out.
        power: 1 is proportional to the count, 0 the same for all rows.
        min_dim: the narrowest row.
        granules: of each row, or one for all; see `rows.granule_for`. [N], >= 1.

    Returns:
        Multiples of the granules, or the cap where that is none. [N]

    Raises:
        ValueError: the budget is below min_dim for every row, min_dim is negative or above a cap,
            or power is negative or not finite.

    Deterministic: yes.

    Example:
        >>> fill_budget(np.array([100.0, 10.0, 10.0, 1.0]), np.full(4, 8), 12)
        array([8, 2, 1, 1])
        >>> fill_budget(np.array([100.0, 10.0, 10.0, 1.0]), np.full(4, 8), 12, granules=2)
        array([6, 2, 2, 2])
    """
    steps = np.broadcast_to(np.asarray(granules, np.int64), caps.shape)  # [N]
    lows, tops = steps * units_of(min_dim, steps), steps * units_of(caps, steps)  # stored
    least = int(lows.sum())
    if not (np.isfinite(power) and power >= 0):
        raise ValueError(f"fill_budget: power must be finite and >= 0, got {power}")
    if min_dim < 0 or (caps < min_dim).any():
        raise ValueError(
            f"fill_budget: min_dim must be in 0..{caps.min(initial=min_dim)}, got {min_dim}"
        )
    if budget < least:
        each = " or ".join(map(str, np.unique(lows)))
        why = "" if (lows == min_dim).all() else f" (min_dim {min_dim}, rounded up)"
        raise ValueError(
            f"fill_budget: budget must be at least {each} * {len(counts)} rows = {least}{why}, "
            f"got {budget}"
        )
    if budget >= int(tops.sum()):
        return caps.copy()
    top = counts.max()
    weights = np.power(counts / top if top > 0 else np.zeros_like(counts), power)
    light = weights < _LEAST_WEIGHT
    left = budget - int(tops[~light].sum())
    if left < int(lows[light].sum()):
        level = _level(np.where(light, 0.0, weights), lows, tops, budget)
        return np.minimum(_round(level, counts, steps, tops, budget), caps)
    # Every row with a weight is full; the others share what is left equally.
    dims = caps.copy()
    level = _level(np.ones(int(light.sum())), lows[light], tops[light], left)
    dims[light] = _round(level, counts[light], steps[light], tops[light], left)
    return np.minimum(dims, caps)


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


def _level(weights: Floats, lows: Ints, tops: Ints, budget: int) -> Floats:
    """clip(nu * weights, lows, tops) with the largest nu whose sum does not exceed the budget."""
    low = float(np.log(1e-300))
    high = float(np.log(tops.max()) - np.log(weights[weights > 0].min()))
    # Halving 64 times leaves less than the spacing of two logarithms.
    for _ in range(64):
        middle = (low + high) / 2
        if np.clip(np.exp(middle) * weights, lows, tops).sum() <= budget:
            low = middle
        else:
            high = middle
    level: Floats = np.clip(np.exp(low) * weights, lows, tops)
    return level


def _round(level: Floats, counts: Floats, steps: Ints, tops: Ints, budget: int) -> Ints:
    """Multiples of the steps that sum to the budget: rounded down, then one step more each for the
    largest fractions, as long as a step fits."""
    dims = steps * np.floor(level / steps).astype(np.int64)
    order = np.lexsort((-counts, (dims - level) / steps))
    left = budget - int(dims.sum())
    has_fit = True
    while has_fit:
        has_fit = False
        line = order[dims[order] < tops[order]]
        while len(line := line[steps[line] <= left]):  # each row once, the larger steps drop out
            fits = int((np.cumsum(steps[line]) <= left).sum())
            dims[line[:fits]] += steps[line[:fits]]
            left -= int(steps[line[:fits]].sum())
            line, has_fit = line[fits:], True
    return dims
