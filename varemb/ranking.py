"""Full ranking: Recall@k and NDCG@k of every user over all items, in chunks, on CPU and GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Users of a chunk times items: 16 MiB of float32, which the last cache of a CPU still holds.
_CHUNK_SCORES = {"cpu": 1 << 22, "cuda": 1 << 26}

Score = Callable[[Tensor, Tensor], Tensor]


class ItemLists(NamedTuple):
    """Items of every user (CSR): those of user u are items[starts[u] : starts[u + 1]].

    Attributes:
        starts: [U + 1] int64, from 0 to P, never falling.
        items: [P] int64, ascending and distinct for each user.
    """

    starts: Tensor
    items: Tensor


def item_lists(users: Tensor, items: Tensor, num_users: int) -> ItemLists:
    """The items of every user, sorted; an item that comes twice is kept once.

    Args:
        users, items: interactions in any order. [P] int64 each.
        num_users: U; users without interactions have empty lists.

    Raises:
        ValueError: users and items differ in length, or a number is out of range.

    Example:
        >>> item_lists(torch.tensor([2, 0, 2, 2]), torch.tensor([5, 1, 3, 5]), 3)
        ItemLists(starts=tensor([0, 1, 1, 3]), items=tensor([1, 3, 5]))
    """
    if users.shape != items.shape or users.dim() != 1:
        raise ValueError(
            "item_lists: users and items must be 1-D of one length, "
            f"got shapes {list(users.shape)} and {list(items.shape)}"
        )
    if users.numel() == 0:
        return ItemLists(items.new_zeros(num_users + 1), items)
    if int(users.min()) < 0 or int(users.max()) >= num_users or int(items.min()) < 0:
        raise ValueError(
            f"item_lists: users must lie in [0, {num_users}) and items be >= 0, "
            f"got users {int(users.min())} to {int(users.max())} and item {int(items.min())}"
        )
    span = int(items.max()) + 1
    keys = torch.unique(users * span + items)  # sorted
    return ItemLists(_starts_of(keys // span, num_users), keys % span)


@dataclasses.dataclass(frozen=True)
class RankMetrics:
    """Quality of the ranked lists of all users who have positives.

    Attributes:
        users: who they are, ascending. [T] int64
        recall: for every k, |top-k ∩ P_u| / |P_u|. [T] float64 each
        ndcg: for every k, DCG@k / IDCG@k. [T] float64 each
        excluded: users without positives, who count in no mean.
    """

    users: Tensor
    recall: dict[int, Tensor]
    ndcg: dict[int, Tensor]
    excluded: int

    def means(self) -> dict[str, float]:
        """Means over the users, such as {"recall@20": 0.2, "ndcg@20": 0.3}."""
        named = {"recall": self.recall, "ndcg": self.ndcg}
        return {
            f"{name}@{k}": float(values.mean())
            for name, by_k in named.items()
            for k, values in by_k.items()
        }


@torch.no_grad()
def rank_metrics(
    users: Tensor | Score,
    items: Tensor,
    seen: ItemLists,
    test: ItemLists,
    ks: Sequence[int],
    *,
    candidates: Tensor | None = None,
    chunk: int | None = None,
) -> RankMetrics:
    """Recall@k and NDCG@k of every user's list of all items, without those already seen.

    P_u are the user's positives, and item_r the item at rank r of the list:
    DCG@k = Σ_{r<=k} 1[item_r ∈ P_u] / log2(r + 1), IDCG@k = Σ_{r<=min(k, |P_u|)} 1 / log2(r + 1).
    Of equal scores the item with the smaller number comes first. A seen item, one that is no
    candidate, and one with score -inf is never ranked, but as a positive it counts in |P_u|.
    Users without positives are left out and counted.

    Args:
        users: vectors whose products with the items' vectors are the scores, [U, D]; or a function
            (user numbers [b], the candidates' rows of `items` [C, ...]) -> scores [b, C].
        items: a row for every item, on the device to compute on. [I, ...]
        seen: items that are not ranked, such as the training items; on any device.
        test: the positives.
        ks: lengths of the lists, each >= 1.
        candidates: items that are ranked, distinct; all by default. [C] int64
        chunk: users scored at a time; by default such that their scores take 16 MiB (256 on a GPU).

    Raises:
        ValueError: nobody has a positive, a k below 1, an item number outside the table, lists of
            different numbers of users, repeated candidates, or a score that is not a number.

    Deterministic: yes. Synchronizes: yes.

    Example:
        >>> positives = item_lists(torch.tensor([0, 0]), torch.tensor([1, 2]), 2)
        >>> seen = item_lists(torch.tensor([0]), torch.tensor([0]), 2)
        >>> scores = torch.tensor([[9.0, 5.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])
        >>> users, items = scores, torch.eye(4)  # vectors with these products
        >>> found = rank_metrics(users, items, seen, positives, [2])
        >>> found.recall[2].tolist(), round(found.means()["ndcg@2"], 4), found.excluded
        ([0.5], 0.6131, 1)
    """
    device = items.device
    seen, test = (ItemLists(*(part.to(device) for part in lists)) for lists in (seen, test))
    _check(users, items, seen, test, ks)
    counts = test.starts.diff()  # [U], |P_u|
    active = counts.nonzero().squeeze(1)  # [T]
    if len(active) == 0:
        raise ValueError("rank_metrics: at least one user must have a positive, got none")
    if candidates is not None:
        # In ascending order, so that a smaller place is a smaller item.
        candidates = _check_candidates(candidates.to(device), len(items))
        seen, test = (_among(lists, candidates, len(items)) for lists in (seen, test))
        items = items[candidates]
    # User by user and ascending, so ascending as a whole.
    positives = _keys(test, len(items))
    if chunk is None:
        chunk = max(1, _CHUNK_SCORES.get(device.type, 1 << 22) // max(1, len(items)))
    longest = min(max(ks), len(items))
    hits = torch.cat(
        [_hits(users, items, some, seen, positives, longest) for some in active.split(chunk)]
    )  # [T, longest]
    return _measure(hits, active, counts[active], ks, len(counts) - len(active))


def _hits(
    users: Tensor | Score,
    items: Tensor,  # [C, ...]
    numbers: Tensor,  # [b], users
    seen: ItemLists,
    positives: Tensor,  # [P], user * C + item, ascending
    longest: int,
) -> Tensor:  # [b, longest] bool: is the item at this rank a positive?
    scores = users[numbers] @ items.T if isinstance(users, Tensor) else users(numbers, items)
    if scores.shape != (len(numbers), len(items)):
        raise ValueError(
            f"rank_metrics: scores must be [{len(numbers)}, {len(items)}], got {list(scores.shape)}"
        )
    if not isinstance(users, Tensor):
        scores = scores.clone()  # masked below; the function may own what it returned
    rows, columns = _entries(seen, numbers)
    scores[rows, columns] = -torch.inf
    top, places = _best(scores, longest)
    if bool(top.isnan().any()):
        user = int(numbers[top.isnan().any(1).nonzero()[0, 0]])
        raise ValueError(f"rank_metrics: scores must be numbers, user {user} has one that is NaN")
    if len(positives) == 0:
        return torch.zeros_like(places, dtype=torch.bool)
    keys = numbers[:, None] * len(items) + places  # [b, longest]
    found = torch.searchsorted(positives, keys).clamp_(max=len(positives) - 1)
    return (positives[found] == keys) & (top > -torch.inf)


def _best(scores: Tensor, longest: int) -> tuple[Tensor, Tensor]:  # [b, longest] each
    """The highest scores and their places; of equal ones the smaller place comes first."""
    # One more than asked for: if it equals the last, topk was free in which of them to take.
    top, places = scores.topk(min(longest + 1, scores.shape[1]), dim=1)
    if top.shape[1] > longest:
        is_tied = (top[:, longest - 1] == top[:, longest]) & (top[:, longest] > -torch.inf)
        top, places = top[:, :longest], places[:, :longest]
        tied = is_tied.nonzero().squeeze(1)
    else:
        tied = places.new_empty(0)
    # Among those taken topk is free in the order of equals.
    places, order = places.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    places = places.gather(1, order)
    if len(tied):
        ranked, order = scores[tied].sort(dim=1, descending=True, stable=True)
        top[tied], places[tied] = ranked[:, :longest], order[:, :longest]
    return top, places


def _measure(
    hits: Tensor,  # [T, longest] bool
    users: Tensor,  # [T]
    counts: Tensor,  # [T], |P_u| >= 1
    ks: Sequence[int],
    excluded: int,
) -> RankMetrics:
    ranks = torch.arange(1, max(ks) + 1, dtype=torch.float64, device=hits.device)
    discounts = 1 / torch.log2(ranks + 1)  # [max k]
    ideal = discounts.cumsum(0)  # IDCG of 1, 2, ... positives
    found = hits.to(torch.float64)
    recalled = found.cumsum(1)
    gained = (found * discounts[: hits.shape[1]]).cumsum(1)
    recall, ndcg = {}, {}
    for k in ks:
        last = min(k, hits.shape[1]) - 1  # a list cannot be longer than the items
        recall[k] = recalled[:, last] / counts
        ndcg[k] = gained[:, last] / ideal[counts.clamp(max=k) - 1]
    return RankMetrics(users, recall, ndcg, excluded)


def _starts_of(users: Tensor, num_users: int) -> Tensor:
    """Where the entries of each user start. users: [P], ascending. Returns: [num_users + 1]"""
    return torch.searchsorted(users, torch.arange(num_users + 1, device=users.device))


def _users_of(lists: ItemLists) -> Tensor:
    """The user of every entry. [P]"""
    numbers = torch.arange(len(lists.starts) - 1, device=lists.items.device)
    return numbers.repeat_interleave(lists.starts.diff())


def _keys(lists: ItemLists, num_items: int) -> Tensor:
    """Every entry as one number, user * num_items + item. [P]"""
    return _users_of(lists) * num_items + lists.items


def _entries(lists: ItemLists, users: Tensor) -> tuple[Tensor, Tensor]:
    """The entries of some users, as places in `users` and items. users: [b]. Returns: [p] each."""
    starts = lists.starts[users]
    lengths = lists.starts[users + 1] - starts
    rows = torch.arange(len(users), device=users.device).repeat_interleave(lengths)
    before = lengths.cumsum(0) - lengths  # entries of the users before
    offsets = torch.arange(len(rows), device=users.device) + (starts - before)[rows]
    return rows, lists.items[offsets]


def _among(lists: ItemLists, candidates: Tensor, num_items: int) -> ItemLists:
    """The same lists with places in `candidates` (ascending) for items; others are left out."""
    place_of = torch.full((num_items,), -1, device=candidates.device)
    place_of[candidates] = torch.arange(len(candidates), device=candidates.device)
    places = place_of[lists.items]
    users = _users_of(lists)[places >= 0]
    return ItemLists(_starts_of(users, len(lists.starts) - 1), places[places >= 0])


def _check_candidates(candidates: Tensor, num_items: int) -> Tensor:
    """The candidates in ascending order."""
    ordered = torch.unique(candidates)
    if len(ordered) == 0 or len(ordered) != candidates.numel():
        raise ValueError("rank_metrics: candidates must be distinct, and at least one")
    if int(ordered[0]) < 0 or int(ordered[-1]) >= num_items:
        raise ValueError(
            f"rank_metrics: candidates must lie in [0, {num_items}), "
            f"got {int(ordered[0])} to {int(ordered[-1])}"
        )
    return ordered


def _check(
    users: Tensor | Score, items: Tensor, seen: ItemLists, test: ItemLists, ks: Sequence[int]
) -> None:
    if not ks or min(ks) < 1:
        raise ValueError(f"rank_metrics: ks must be whole numbers >= 1, got {list(ks)}")
    sizes = [len(seen.starts) - 1, len(test.starts) - 1]
    sizes += [len(users)] if isinstance(users, Tensor) else []
    if len(set(sizes)) != 1:
        raise ValueError(
            f"rank_metrics: seen, test and vectors must have the same users, got {sizes} of them"
        )
    for name, lists in (("seen", seen), ("test", test)):
        if len(lists.items) == 0:
            continue
        if int(lists.items.min()) < 0 or int(lists.items.max()) >= len(items):
            raise ValueError(
                f"rank_metrics: items of {name} must lie in [0, {len(items)}), "
                f"got {int(lists.items.min())} to {int(lists.items.max())}"
            )
        if not bool((_keys(lists, len(items)).diff() > 0).all()):
            raise ValueError(
                f"rank_metrics: items of {name} must be ascending and distinct for each user "
                "(item_lists makes them so)"
            )
