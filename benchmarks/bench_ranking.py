"""`python -m benchmarks.bench_ranking`: full ranking and BPR triples beside loops over users.

Two loops over users: the fast one has a product, a mask and an argpartition of numpy per user; the
usual one, which the released code of several papers has, collects the scores of the unseen items in
a dict and takes heapq.nlargest. All must give the same numbers to 1e-6 before times are shown.
"""

from __future__ import annotations

import argparse
import heapq
import os
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.bpr_sampler import BprSampler
from varemb.ranking import ItemLists, item_lists, rank_metrics

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
# users, items, interactions of each user (at random, popular items first): about those of
# MovieLens 1M, and of the Yelp 2018 graph.
SIZES = {"ml-1m": (6040, 3706, 165), "yelp-2018": (31668, 38048, 49)}


def make_split(size: str) -> tuple[tuple[Tensor, Tensor], ItemLists, ItemLists]:
    """Training pairs, the same as lists, and a test list a third as long."""
    num_users, num_items, mean = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    total = num_users * mean
    users = torch.randint(0, num_users, (total,), generator=generator)
    items = (torch.rand(total, generator=generator) ** 2.5 * num_items).long()
    keys = torch.unique(users * num_items + items)
    users, items = keys // num_items, keys % num_items
    is_train = torch.rand(len(keys), generator=generator) < 0.75
    pairs = users[is_train], items[is_train]
    return (
        pairs,
        item_lists(*pairs, num_users),
        item_lists(users[~is_train], items[~is_train], num_users),
    )


def take_partition(scores: Floats, masked: Ints, k: int) -> list[int]:
    """The k best unseen items, by numpy."""
    scores[masked] = -np.inf
    top = np.argpartition(-scores, k)[:k]
    return top[np.argsort(-scores[top], kind="stable")].tolist()


def take_largest(scores: Floats, masked: Ints, k: int) -> list[int]:
    """The k best unseen items, by a heap of Python."""
    rated = {item: scores[item] for item in set(range(len(scores))) - set(masked.tolist())}
    return heapq.nlargest(k, rated, key=rated.__getitem__)


def loop_metrics(
    users: Tensor,
    items: Tensor,
    seen: ItemLists,
    test: ItemLists,
    k: int,
    take: Callable[[Floats, Ints, int], list[int]],
) -> tuple[float, float]:
    """Recall@k and NDCG@k, user by user."""
    left, right = users.numpy(), items.numpy()
    masked = np.split(seen.items.numpy(), seen.starts[1:-1].numpy())
    wanted = np.split(test.items.numpy(), test.starts[1:-1].numpy())
    recall, ndcg = [], []
    for user, positives in enumerate(wanted):
        if not len(positives):
            continue
        mine = set(positives.tolist())
        hits = [item in mine for item in take(right @ left[user], masked[user], k)]
        ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(mine))))
        recall.append(sum(hits) / len(mine))
        ndcg.append(sum(1 / np.log2(rank + 2) for rank, hit in enumerate(hits) if hit) / ideal)
    return float(np.mean(recall)), float(np.mean(ndcg))


def loop_triples(pairs: tuple[Tensor, Tensor], num_items: int, count: int) -> list[Ints]:
    """(user, positive, negative), drawn one at a time until an unseen item comes."""
    generator = np.random.default_rng(0)
    users, items = pairs[0].numpy(), pairs[1].numpy()
    seen: dict[int, set[int]] = {}
    for user, item in zip(users.tolist(), items.tolist(), strict=True):
        seen.setdefault(user, set()).add(item)
    chosen = generator.integers(0, len(users), count)
    negatives = np.empty(count, np.int64)
    for i, user in enumerate(users[chosen].tolist()):
        item = int(generator.integers(num_items))
        while item in seen[user]:
            item = int(generator.integers(num_items))
        negatives[i] = item
    return [users[chosen], items[chosen], negatives]


def seconds(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Median seconds of the clock and of the processor."""
    clock, processor = [], []
    for _ in range(rounds):
        start, busy = time.perf_counter(), time.process_time()
        work()
        processor.append(time.process_time() - busy)
        clock.append(time.perf_counter() - start)
    return float(np.median(clock)), float(np.median(processor))


def measure_ranking(size: str, width: int, k: int, rounds: int) -> None:
    """Prints seconds of all ways of ranking all users."""
    num_users, num_items, _ = SIZES[size]
    _, seen, test = make_split(size)
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(num_users, width, generator=generator)
    items = torch.randn(num_items, width, generator=generator)
    ours = seconds(lambda: rank_metrics(users, items, seen, test, [k]), rounds)
    for name, take, share in (("fast", take_partition, 1), ("usual", take_largest, 10)):
        # The first users are like the others.
        some = num_users // share
        parts = users[:some], items, first_lists(seen, some), first_lists(test, some)
        found = rank_metrics(*parts, [k]).means()
        start = time.perf_counter(), time.process_time()
        expected = loop_metrics(*parts, k, take)
        theirs = time.perf_counter() - start[0], time.process_time() - start[1]
        worst = max(abs(a - b) for a, b in zip(found.values(), expected, strict=True))
        if not worst < 1e-6:
            raise RuntimeError(f"bench_ranking: {found} differs from the loop's {expected}")
        factor = num_users / some
        title = f"{size}: rank, width {width}, k = {k}, {name} loop"
        show(title, ours, (theirs[0] * factor, theirs[1] * factor))


def first_lists(lists: ItemLists, users: int) -> ItemLists:
    """The lists of the first users."""
    return ItemLists(lists.starts[: users + 1], lists.items[: lists.starts[users]])


def measure_sampling(size: str, count: int, rounds: int) -> None:
    """Prints seconds of both ways of drawing triples."""
    num_users, num_items, _ = SIZES[size]
    (users, items), _, _ = make_split(size)
    start = time.process_time()
    sampler = BprSampler(users.numpy(), items.numpy(), num_users, num_items, 0)
    made = time.process_time() - start
    ours = seconds(lambda: sampler.sample(count), rounds)
    part = max(1, count // 10)
    theirs = seconds(lambda: loop_triples((users, items), num_items, part), max(1, rounds // 3))
    show(f"{size}: {count} triples", ours, (theirs[0] * count / part, theirs[1] * count / part))
    print(f"{'':48}made once in {made:.3f} s; the loop is timed on {part}, its sets included")


def show(name: str, ours: tuple[float, float], theirs: tuple[float, float]) -> None:
    ratio = theirs[1] / ours[1]
    print(
        f"{name:48}{ours[0]:9.3f}{ours[1]:9.3f}{theirs[0]:11.3f}{theirs[1]:9.3f}{ratio:8.1f}",
        flush=True,
    )


def main() -> None:
    """Measures ranking and sampling on both sizes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1, help="of torch and of the sampler")
    parser.add_argument("--width", type=int, default=128, help="numbers of a vector")
    parser.add_argument("--k", type=int, default=20, help="length of the lists")
    parser.add_argument("--triples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=list(SIZES))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{options.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print(
        f"{'seconds of clock and processor':48}{'ours':>9}{'CPU':>9}{'loop':>11}{'CPU':>9}{'x':>8}"
    )
    for size in options.size:
        measure_ranking(size, options.width, options.k, options.rounds)
        measure_sampling(size, options.triples, options.rounds)


if __name__ == "__main__":
    main()
