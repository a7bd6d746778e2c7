"""Plans for a table of nodes, users first, under a sparsity: the share of a full table left out.

A sparsity c allows floor((1 - c) N D) numbers for N rows of width D. Where bytes are asked for,
weights and index together take at most (1 - c) of a full table's bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from varemb.budget import fill_budget
from varemb.plan import SizePlan

Dims = npt.NDArray[np.int64]

UNITS = ("numbers", "bytes")
_NUMBER_BYTES = 4
_BLOCK_ROWS, _BLOCK_BYTES = 24, 32  # of the packed index


def allowed_numbers(rows: int, width: int, sparsity: float, unit: str = "numbers") -> int:
    """How many numbers a table of N rows may hold.

    Args:
        rows: N.
        width: D.
        sparsity: c, in (0, 1).
        unit: "numbers", or "bytes", which takes the packed index off (float32 rows).

    Raises:
        ValueError: a sparsity outside (0, 1), an unknown unit, or a sparsity that does not leave
            every row a number.

    Example:
        >>> [allowed_numbers(1000, 128, c) for c in (0.8, 0.9, 0.95)]
        [25600, 12800, 6400]
        >>> allowed_numbers(1000, 128, 0.8, "bytes")  # 42 index blocks of 8 numbers
        25264
    """
    if not 0 < sparsity < 1:
        raise ValueError(f"sparsity: must be in (0, 1), got {sparsity}")
    if unit not in UNITS:
        raise ValueError(f"sparsity: the unit must be numbers or bytes, got {unit!r}")
    # A fraction from the decimal text: 1 - 0.9 is a little less than a tenth.
    numbers = math.floor((1 - Fraction(str(sparsity))) * rows * width)
    if unit == "bytes":
        numbers -= -(-rows // _BLOCK_ROWS) * _BLOCK_BYTES // _NUMBER_BYTES
    if numbers < rows:
        raise ValueError(
            f"sparsity: {sparsity} leaves {max(numbers, 0):,} numbers for {rows:,} rows; every row "
            f"needs 1, which a sparsity of {1 - 1 / width:.4f} at most can give"
        )
    return numbers


def check_distinct(method: str, sparsities: Sequence[float]) -> None:
    """Raises ValueError unless there are sparsities, each once."""
    if not sparsities or len(set(sparsities)) < len(sparsities):
        raise ValueError(f"{method}: sparsities must be distinct, got {sparsities}")


def fit_dims(dims: Dims, width: int, numbers: int) -> Dims:
    """Dims in proportion to given ones, 1 to D, whose sum is exactly so many numbers.

    Example:
        >>> fit_dims(np.array([8, 4, 4]), 8, 8)
        array([4, 2, 2])
    """
    caps = np.full(len(dims), width, np.int64)
    return fill_budget(dims.astype(np.float64), caps, numbers)


def equal_dims(rows: int, numbers: int, seed: int | None = None) -> Dims:
    """ES: every row has as many numbers, as many as there are for all.

    Args:
        rows: N.
        numbers: of all rows, at least one each.
        seed: of which rows get one number more each, so that all numbers are taken; None leaves
            what rounding leaves.

    Example:
        >>> [int(equal_dims(1000, allowed_numbers(1000, 128, c))[0]) for c in (0.8, 0.9, 0.95)]
        [25, 12, 6]
        >>> int(equal_dims(1000, 12_800, seed=0).sum())
        12800
    """
    each, left = divmod(numbers, rows)
    dims = np.full(rows, each, np.int64)
    if seed is not None:
        dims[np.random.default_rng(seed).permutation(rows)[:left]] += 1
    return dims


def random_dims(rows: int, width: int, sparsity: float, numbers: int, seed: int) -> Dims:
    """MR: every row has a random dim, uniform from 1 to round(2 D (1 - c)) - 1.

    Where that is more than so many numbers in all, random rows lose one number each until it is
    not.

    Example:
        >>> dims = random_dims(1000, 128, 0.9, allowed_numbers(1000, 128, 0.9), seed=0)
        >>> int(dims.min()), int(dims.max()), bool(dims.sum() <= 12800)
        (1, 25, True)
    """
    draw = np.random.default_rng(seed)
    most = max(round(2 * width * (1 - sparsity)) - 1, 1)
    dims = draw.integers(1, min(most, width) + 1, rows)
    while (over := int(dims.sum()) - numbers) > 0:
        wide = np.flatnonzero(dims > 1)
        dims[draw.choice(wide, min(over, len(wide)), replace=False)] -= 1
    return dims


def to_plan(dims: Dims, num_users: int, width: int) -> SizePlan:
    """The plan of a table of nodes: tables "user" and "item"."""
    return SizePlan({"user": dims[:num_users], "item": dims[num_users:]}, width)


def to_dims(plan: SizePlan) -> Dims:
    """The dims of all nodes of a plan with tables "user" and "item"."""
    return np.concatenate([plan["user"], plan["item"]]).astype(np.int64)


@dataclass
class TopPlans:
    """The best plans that a search met, for several sparsities at once.

    A plan is within a sparsity if it does not exceed its numbers. Of those the best have the most
    quality; of the plans above, which can be cut to the numbers, the best have the most reward:
    the wider ones have the better quality anyway.

    Attributes:
        allowed: sparsity -> numbers.
        most: plans of each kind that are kept for each.

    Example:
        >>> top = TopPlans({0.5: 8, 0.75: 4}, most=1)
        >>> for dims, quality in ([4, 4], 0.9), ([3, 1], 0.5), ([2, 2], 0.6), ([8, 8], 1.0):
        ...     top.offer(np.array(dims), quality, quality)
        >>> [(dims.tolist(), is_cut) for dims, is_cut in top.plans(0.5, width=8, fill=True)]
        [([4, 4], False), ([4, 4], True)]
        >>> [(dims.tolist(), is_cut) for dims, is_cut in top.plans(0.75, width=8, fill=True)]
        [([2, 2], False), ([2, 2], True)]
    """

    allowed: Mapping[float, int]
    most: int
    within: dict[float, list[tuple[float, Dims]]] = field(default_factory=dict)
    above: dict[float, list[tuple[float, Dims]]] = field(default_factory=dict)

    def offer(self, dims: Dims, quality: float, reward: float) -> None:
        """Keeps a plan wherever it is among the best; of equals the earlier one stays."""
        for sparsity, numbers in self.allowed.items():
            is_within = int(dims.sum()) <= numbers
            kept = (self.within if is_within else self.above).setdefault(sparsity, [])
            kept.append((quality if is_within else reward, dims))
            kept.sort(key=lambda entry: -entry[0])
            del kept[self.most :]

    def plans(self, sparsity: float, width: int, *, fill: bool) -> list[tuple[Dims, bool]]:
        """The plans for a sparsity, each with whether it was above it and is cut.

        Plans within it and plans above it take turns, the best of each first.

        Args:
            fill: give what a plan leaves of the numbers to its rows, in proportion to their dims.
        """
        within = [(dims, False) for _, dims in self.within.get(sparsity, [])]
        above = [(dims, True) for _, dims in self.above.get(sparsity, [])]
        turns = itertools.chain.from_iterable(itertools.zip_longest(within, above))
        return [
            (fit_dims(dims, width, self.allowed[sparsity]) if fill or is_cut else dims, is_cut)
            for dims, is_cut in filter(None, turns)
        ]

    def state(self) -> dict[str, Any]:
        """All kept plans, for a checkpoint."""
        return {"within": _pack(self.within), "above": _pack(self.above)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.within, self.above = _unpack(state["within"]), _unpack(state["above"])


def _pack(kept: Mapping[float, Sequence[tuple[float, Dims]]]) -> list[Any]:
    return [
        [sparsity, [(score, torch.from_numpy(dims.astype(np.int16))) for score, dims in entries]]
        for sparsity, entries in kept.items()
    ]


def _unpack(packed: Sequence[Any]) -> dict[float, list[tuple[float, Dims]]]:
    return {
        sparsity: [(score, dims.numpy().astype(np.int64)) for score, dims in entries]
        for sparsity, entries in packed
    }
