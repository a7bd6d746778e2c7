"""BprSampler: triples (user, positive, negative) for pairwise losses, drawn in C++."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from varemb import _native

Ints = npt.NDArray[np.int64]
Draw = Literal["pairs", "users"]
_MOST = 2**31 - 1


class BprSampler:
    """Draws (user, positive, negative): the user has the positive and has never seen the negative.

    (user, positive) is uniform over the pairs, a repeated pair counting as often as it comes; or,
    with draw="users", the user is uniform over those who have a pair and the positive over theirs.
    The negative is uniform over the allowed items that the user has not seen. Triples depend on the
    seed and on how many were drawn before, not on threads or on how the draws are cut into calls.

    Args:
        users, items: the pairs. [P] each, int64, in [0, num_users) and [0, num_items).
        num_users, num_items: rows of the two tables, below 2^31.
        seed: any whole number in [0, 2^64).
        seen: further pairs (users, items) that give no positives, but whose items are no negatives
            of their user, such as a stream's history. [S] each.
        allowed: the items that may be negatives; all of them by default. [A], distinct.
        draw: what is uniform, "pairs" or "users".

    Raises:
        ValueError: no pairs, a number out of range (named with its position), or a user with pairs
            who has seen every allowed item (named).
        TypeError: an array that is not int64.
        ImportError: the compiled part is missing; the message says why.

    Example:
        >>> sampler = BprSampler(np.array([0, 0, 1]), np.array([0, 1, 2]), 2, 3, seed=1)
        >>> users, positives, negatives = sampler.sample(1000)
        >>> sorted(set(zip(users.tolist(), positives.tolist(), negatives.tolist())))
        [(0, 0, 2), (0, 1, 2), (1, 2, 0), (1, 2, 1)]
    """

    def __init__(
        self,
        users: Ints,
        items: Ints,
        num_users: int,
        num_items: int,
        seed: int,
        *,
        seen: tuple[Ints, Ints] | None = None,
        allowed: Ints | None = None,
        draw: Draw = "pairs",
    ) -> None:
        if not 0 <= seed < 2**64:
            raise ValueError(f"BprSampler: seed must lie in [0, 2^64), got {seed}")
        if draw not in ("pairs", "users"):
            raise ValueError(f"BprSampler: draw must be 'pairs' or 'users', got {draw!r}")
        for name, count in (("num_users", num_users), ("num_items", num_items)):
            if not 0 < count <= _MOST:
                raise ValueError(f"BprSampler: {name} must lie in [1, 2^31), got {count}")
        none = np.empty(0, np.int64)
        seen_users, seen_items = (none, none) if seen is None else seen
        negatives = np.arange(num_items) if allowed is None else allowed
        numbers = {
            "users": _checked("users", users, num_users),
            "items": _checked("items", items, num_items),
            "seen_users": _checked("seen_users", seen_users, num_users),
            "seen_items": _checked("seen_items", seen_items, num_items),
            "allowed": np.unique(_checked("allowed", negatives, num_items)),
        }
        for one, other in (("users", "items"), ("seen_users", "seen_items")):
            if len(numbers[one]) != len(numbers[other]):
                raise ValueError(
                    f"BprSampler: {one} and {other} must have one length, "
                    f"got {len(numbers[one])} and {len(numbers[other])}"
                )
        if len(users) == 0:
            raise ValueError("BprSampler: there must be at least one pair, got none")
        if len(numbers["allowed"]) != len(negatives):
            raise ValueError("BprSampler: allowed items must be distinct")
        self._seed, self._drawn = seed, 0
        self._sampler = _native.host().BprSampler(
            **numbers,
            num_users=num_users,
            num_items=num_items,
            seed=seed,
            is_per_user=draw == "users",
        )

    def sample(self, count: int, *, threads: int | None = None) -> tuple[Ints, Ints, Ints]:
        """The next triples: users, positives, negatives. [count] int64 each.

        Args:
            count: how many, >= 0.
            threads: as many as torch uses by default; the triples are the same for any number.

        Deterministic: yes.
        """
        if count < 0:
            raise ValueError(f"BprSampler.sample: count must be >= 0, got {count}")
        number = torch.get_num_threads() if threads is None else threads
        users, positives, negatives = self._sampler.sample(self._drawn, count, threads=number)
        self._drawn += count
        return users, positives, negatives

    def state(self) -> dict[str, int]:
        """What to save beside the pairs, so that the draws go on where they stopped."""
        return {"seed": self._seed, "drawn": self._drawn}

    def load_state(self, state: dict[str, int]) -> None:
        """Goes on behind the triples of a sampler of the same pairs and seed.

        Raises:
            ValueError: the state is of another seed.
        """
        if state["seed"] != self._seed or state["drawn"] < 0:
            raise ValueError(
                f"BprSampler.load_state: the state must be of seed {self._seed}, got {state}"
            )
        self._drawn = state["drawn"]


def _checked(name: str, numbers: Ints, below: int) -> Ints:
    """The numbers as a contiguous array, all in [0, below)."""
    if not isinstance(numbers, np.ndarray) or numbers.dtype != np.int64 or numbers.ndim != 1:
        is_array = isinstance(numbers, np.ndarray)
        got = f"{numbers.ndim}-D {numbers.dtype}" if is_array else type(numbers).__name__
        raise TypeError(f"BprSampler: {name} must be a 1-D int64 array, got {got}")
    bad = (numbers < 0) | (numbers >= below)
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(
            f"BprSampler: {name} must lie in [0, {below}), got {numbers[place]} at position {place}"
        )
    return np.ascontiguousarray(numbers)
