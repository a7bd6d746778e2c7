"""rank_metrics: the numbers of a plain loop, ties by rule, nothing ranked that must not be."""

import math

import numpy as np
import pytest
import torch

from varemb.ranking import ItemLists, item_lists, rank_metrics

NOTHING = torch.empty(0, dtype=torch.int64)


@pytest.fixture(autouse=True)
def _small_work(_one_thread):  # which sets torch's own number again
    torch.set_num_threads(1)


def lists_of(*users: list[int]) -> ItemLists:
    numbers = torch.tensor([user for user, items in enumerate(users) for _ in items]).long()
    return item_lists(
        numbers, torch.tensor([i for items in users for i in items]).long(), len(users)
    )


def measure(scores, seen, test, ks, **options):
    """rank_metrics of a matrix of scores [U, I]."""
    function = options.pop("function", lambda users, items: scores[users][:, items])
    return rank_metrics(function, torch.arange(scores.shape[1]), seen, test, ks, **options)


def loop(scores, seen, test, ks, candidates):
    """User by user, item by item. Returns: {user: {("recall" | "ndcg", k): value}}."""
    found = {}
    for user, row in enumerate(scores.tolist()):
        mine = set(test.items[test.starts[user] : test.starts[user + 1]].tolist())
        masked = set(seen.items[seen.starts[user] : seen.starts[user + 1]].tolist())
        if not mine:
            continue
        open_ = [i for i in candidates if i not in masked and row[i] > -math.inf]
        ranked = sorted(open_, key=lambda i: (-row[i], i))
        values = found[user] = {}
        for k in ks:
            gains = [1 / math.log2(r + 2) for r, item in enumerate(ranked[:k]) if item in mine]
            ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(mine))))
            values["recall", k] = len(gains) / len(mine)
            values["ndcg", k] = sum(gains) / ideal
    return found


def random_lists(generator, users, items, share):
    return item_lists(
        *torch.nonzero(torch.rand(users, items, generator=generator) < share).T, users
    )


@pytest.mark.parametrize("kind", ["distinct", "tied", "all equal", "some -inf", "float16"])
@pytest.mark.parametrize("few", [False, True])
# Lists that end among equal scores; and lists of all there is, with and without seen items.
@pytest.mark.parametrize(
    ("ks", "share"), [((1, 2, 5), 0.4), ((9, 3), 0.1), ((100, 12), 0.4), ((45, 46), 0)]
)
def test_rank_metrics_equal_a_loop(kind, few, ks, share):
    generator = torch.Generator().manual_seed(3)
    users, items = 60, 45
    scores = torch.randn(users, items, generator=generator)
    if kind == "tied":
        scores = scores.mul(1.5).round()  # also -0.0 beside 0.0
    elif kind == "all equal":
        scores = torch.zeros(users, items)
    elif kind == "some -inf":
        scores[torch.rand(users, items, generator=generator) < 0.6] = -math.inf
    elif kind == "float16":
        scores = scores.half()
    seen = random_lists(generator, users, items, share)
    test = random_lists(generator, users, items, 0.05)  # some of them seen, some users without
    candidates = torch.randperm(items, generator=generator)[: 12 if few else items]
    expected = loop(scores, seen, test, ks, sorted(candidates.tolist()))
    assert 0 < len(expected) < users
    for chunk in (None, 1, 7):
        found = measure(scores, seen, test, ks, candidates=candidates if few else None, chunk=chunk)
        assert found.users.tolist() == list(expected)
        assert found.excluded == users - len(expected)
        for name in ("recall", "ndcg"):
            for k in ks:
                wanted = torch.tensor([v[name, k] for v in expected.values()]).double()
                torch.testing.assert_close(getattr(found, name)[k], wanted, rtol=0, atol=1e-6)
                assert math.isclose(found.means()[f"{name}@{k}"], wanted.mean(), rel_tol=1e-6)


def test_vectors_are_their_products():
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(30, 8, generator=generator), torch.randn(50, 8, generator=generator)
    seen, test = (random_lists(generator, 30, 50, share) for share in (0.3, 0.1))
    for candidates in (None, torch.arange(0, 50, 3)):
        one = rank_metrics(left, right, seen, test, [5], candidates=candidates)
        other = measure(left @ right.T, seen, test, [5], candidates=candidates)
        assert one.means() == other.means()


def test_a_planted_ranking_has_the_values_of_the_formula():
    """Ranks 1, 2, 3 (3 is seen), 4: hits at ranks 1 and 3; 41 positives at most help k = 5."""
    scores = torch.tensor([[5.0, 4.0, 9.0, 3.0, 2.0, 1.0]])
    found = measure(scores, lists_of([2]), lists_of([0, 3, 5]), [1, 3, 4, 5, 20])
    assert found.recall[1].tolist() == [1 / 3] and found.ndcg[1].tolist() == [1.0]
    assert found.recall[3].tolist() == found.recall[4].tolist() == [2 / 3]
    ideal = 1 + 1 / math.log2(3) + 1 / 2
    assert found.ndcg[3].tolist() == pytest.approx([(1 + 1 / 2) / ideal])
    assert found.recall[20].tolist() == [1.0]
    assert found.ndcg[20].tolist() == pytest.approx([(1 + 1 / 2 + 1 / math.log2(6)) / ideal])


def test_the_ideal_gain_of_five_and_twenty():
    """One hit at rank 1 among 30 positives: its gain is 1 / IDCG@k."""
    scores = -torch.arange(100.0)[None]
    test = lists_of([0, *range(60, 89)])
    found = measure(scores, lists_of([]), test, [5, 20])
    assert 1 / found.ndcg[5].item() == pytest.approx(2.9485, abs=5e-5)
    assert 1 / found.ndcg[20].item() == pytest.approx(7.0403, abs=5e-5)


def test_a_seen_positive_is_never_a_hit():
    """Only one item is left to rank, so that topk must also return masked ones."""
    found = measure(torch.zeros(1, 3), lists_of([0, 1]), lists_of([0, 2]), [3])
    assert found.recall[3].tolist() == [0.5]
    assert found.ndcg[3].tolist() == pytest.approx([1 / (1 + 1 / math.log2(3))])


def test_the_scores_of_a_function_are_left_as_they_are():
    scores = torch.zeros(2, 3)
    lists = lists_of([0], [1])
    measure(scores, lists, lists_of([1], [2]), [1], function=lambda users, items: scores)
    assert (scores == 0).all()


def test_item_lists_are_sorted_and_distinct():
    users, items = torch.tensor([3, 1, 3, 3, 1]), torch.tensor([9, 0, 2, 9, 7])
    made = item_lists(users, items, 5)
    assert made.starts.tolist() == [0, 0, 2, 2, 4, 4] and made.items.tolist() == [0, 7, 2, 9]
    assert item_lists(NOTHING, NOTHING, 2).starts.tolist() == [0, 0, 0]
    for bad in (
        (users, items[:2], 5),
        (users, items, 3),
        (users - 2, items, 5),
        (users, -items, 5),
    ):
        with pytest.raises(ValueError, match=r"item_lists: users and items must|must lie in"):
            item_lists(*bad)


ONE = lists_of([1], [0])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ks": []}, r"ks must be whole numbers >= 1, got \[\]"),
        ({"ks": [5, 0]}, r"got \[5, 0\]"),
        ({"seen": lists_of([1])}, r"the same users, got \[1, 2\]"),
        ({"test": lists_of([3], [0])}, r"items of test must lie in \[0, 3\), got 0 to 3"),
        ({"seen": ItemLists(torch.tensor([0, 2, 2]), torch.tensor([1, 0]))}, "seen must be ascend"),
        ({"test": lists_of([], [])}, "at least one user must have a positive"),
        ({"candidates": torch.tensor([1, 1])}, "candidates must be distinct"),
        ({"candidates": NOTHING}, "at least one"),
        ({"candidates": torch.tensor([1, 3])}, r"candidates must lie in \[0, 3\), got 1 to 3"),
        ({"scores": torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, 1.0]])}, "user 1 has one that"),
        ({"function": lambda users, items: torch.zeros(2, 2)}, r"must be \[2, 3\], got \[2, 2\]"),
    ],
)
def test_what_cannot_be_ranked_is_refused(change, text):
    arguments = {"scores": torch.zeros(2, 3), "seen": lists_of([], []), "test": ONE, "ks": [1]}
    with pytest.raises(ValueError, match=text):
        measure(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_numbers_of_the_cpu():
    generator = torch.Generator().manual_seed(0)
    # Products of small whole numbers are exact everywhere, and often equal.
    left = torch.randint(-2, 3, (300, 8), generator=generator).float()
    right = torch.randint(-2, 3, (500, 8), generator=generator).float()
    seen, test = (random_lists(generator, 300, 500, share) for share in (0.2, 0.05))
    for candidates in (None, torch.arange(0, 500, 7)):
        expected = rank_metrics(left, right, seen, test, [5, 20], candidates=candidates)
        found = rank_metrics(left.cuda(), right.cuda(), seen, test, [5, 20], candidates=candidates)
        for k in (5, 20):
            recall, ndcg = found.recall[k].cpu(), found.ndcg[k].cpu()
            np.testing.assert_allclose(recall, expected.recall[k], rtol=0, atol=1e-12)
            np.testing.assert_allclose(ndcg, expected.ndcg[k], rtol=0, atol=1e-12)
