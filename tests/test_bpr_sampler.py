"""BprSampler: triples that are right, uniform, and the same for any threads and cuts."""

import numpy as np
import pytest

from varemb import _native
from varemb.bpr_sampler import BprSampler

pytestmark = pytest.mark.skipif(
    _native.host_missing() is not None, reason=f"varemb._host: {_native.host_missing()}"
)

# User 0 has one pair, user 2 one that comes twice and another; user 1 has none. Item 4 is nobody's.
USERS = np.array([2, 0, 2, 2])
ITEMS = np.array([3, 0, 1, 3])


def make(seed=7, **options):
    return BprSampler(USERS, ITEMS, 3, 5, seed, **options)


def shares(draws, count):
    """How often each combination comes. Returns: {combination: share of the draws}."""
    combinations, times = np.unique(np.stack(draws, 1), axis=0, return_counts=True)
    return {tuple(c): t / count for c, t in zip(combinations.tolist(), times, strict=True)}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # pair by pair, 1/4 each; user 0 has not seen 1 2 3 4, user 2 not 0 2 4
        (
            {},
            {(0, 0, n): 1 / 16 for n in (1, 2, 3, 4)}
            | {(2, 3, n): 2 / 12 for n in (0, 2, 4)}
            | {(2, 1, n): 1 / 12 for n in (0, 2, 4)},
        ),
        (
            {"draw": "users"},
            {(0, 0, n): 1 / 8 for n in (1, 2, 3, 4)}
            | {(2, 3, n): 2 / 18 for n in (0, 2, 4)}
            | {(2, 1, n): 1 / 18 for n in (0, 2, 4)},
        ),
        (
            {"allowed": np.array([4, 1, 0])},
            {(0, 0, n): 1 / 8 for n in (1, 4)}
            | {(2, 3, n): 2 / 8 for n in (0, 4)}
            | {(2, 1, n): 1 / 8 for n in (0, 4)},
        ),
        # seen once more, twice, by a user without pairs, and outside of what is allowed
        (
            {
                "seen": (np.array([0, 0, 0, 1, 2]), np.array([2, 2, 0, 4, 2])),
                "allowed": np.array([0, 1, 4]),
            },
            {(0, 0, n): 1 / 8 for n in (1, 4)}
            | {(2, 3, n): 2 / 8 for n in (0, 4)}
            | {(2, 1, n): 1 / 8 for n in (0, 4)},
        ),
        (
            {"seen": (np.array([0, 0, 2]), np.array([1, 4, 0]))},
            {(0, 0, n): 1 / 8 for n in (2, 3)}
            | {(2, 3, n): 2 / 8 for n in (2, 4)}
            | {(2, 1, n): 1 / 8 for n in (2, 4)},
        ),
    ],
)
def test_every_triple_comes_as_often_as_it_must(options, expected):
    count = 200_000
    found = shares(make(**options).sample(count), count)
    assert found.keys() == expected.keys()
    for triple, share in expected.items():
        deviation = np.sqrt(share * (1 - share) / count)
        assert abs(found[triple] - share) < 4.5 * deviation, triple


def test_successive_triples_are_independent():
    """The negatives of neighbours, over all items but one: all 16 combinations alike."""
    count = 160_000
    negatives = BprSampler(np.array([0]), np.array([4]), 1, 5, 3).sample(2 * count)[2]
    found = shares((negatives[::2], negatives[1::2]), count)
    assert len(found) == 16 and all(abs(share - 1 / 16) < 0.003 for share in found.values())


def test_the_same_triples_for_any_threads_and_cuts():
    users = np.random.default_rng(0).integers(0, 50, 3_000)
    items = np.random.default_rng(1).integers(0, 400, 3_000)
    whole = BprSampler(users, items, 50, 400, 5).sample(60_000, threads=1)
    for threads in (2, 5):
        again = BprSampler(users, items, 50, 400, 5).sample(60_000, threads=threads)
        assert all((a == b).all() for a, b in zip(whole, again, strict=True))
    sampler = BprSampler(users, items, 50, 400, 5)
    parts = [sampler.sample(count) for count in (1, 0, 20_000, 39_999)]
    for column, expected in enumerate(whole):
        assert (np.concatenate([part[column] for part in parts]) == expected).all()
    resumed = BprSampler(users, items, 50, 400, 5)
    resumed.load_state({"seed": 5, "drawn": 20_001})
    assert (resumed.sample(39_999)[2] == whole[2][20_001:]).all()
    assert sampler.state() == {"seed": 5, "drawn": 60_000}
    other = BprSampler(users, items, 50, 400, 6).sample(60_000)
    assert (other[2] == whole[2]).mean() < 0.02
    seen = set(zip(users.tolist(), items.tolist(), strict=True))
    assert seen.issuperset(zip(whole[0].tolist(), whole[1].tolist(), strict=True))
    assert seen.isdisjoint(zip(whole[0].tolist(), whole[2].tolist(), strict=True))


def test_the_one_unseen_item_is_found_at_once():
    """Drawing until an unseen item comes would take 200,000 draws a triple."""
    for unseen in (0, 77_777, 199_999):
        items = np.delete(np.arange(200_000), unseen)
        sampler = BprSampler(np.zeros(len(items), np.int64), items, 1, 200_000, 0)
        assert (sampler.sample(1_000)[2] == unseen).all()


def test_a_user_who_has_seen_everything_is_named():
    users, items = np.array([0, 1, 1, 1]), np.array([0, 2, 0, 1])
    with pytest.raises(ValueError, match="user 1 has seen all of 3"):
        BprSampler(users, items, 2, 3, 0)
    with pytest.raises(ValueError, match="user 0 has seen all of 1"):
        BprSampler(users, items, 2, 4, 0, allowed=np.array([0]))
    # user 1 gives no pair, so needs no negative
    everything = (np.array([1, 1, 1]), np.array([0, 1, 2]))
    assert set(BprSampler(users[:1], items[:1], 2, 3, 0, seen=everything).sample(50)[2]) == {1, 2}


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"users": USERS[:0], "items": ITEMS[:0]}, ValueError, "at least one pair"),
        ({"users": USERS[:3]}, ValueError, "one length, got 3 and 4"),
        ({"users": np.array([0, 3, 0, -1])}, ValueError, r"\[0, 3\), got 3 at position 1"),
        ({"items": np.array([0, 4, 0, -1])}, ValueError, r"\[0, 5\), got -1 at position 3"),
        (
            {"items": ITEMS.astype(np.int32)},
            TypeError,
            "items must be a 1-D int64 array, got 1-D i",
        ),
        ({"items": [1, 2, 3, 4]}, TypeError, "got list"),
        ({"allowed": np.array([1, 1])}, ValueError, "allowed items must be distinct"),
        ({"allowed": np.array([4, 5])}, ValueError, r"allowed .* got 5 at position 1"),
        ({"seen": (USERS, ITEMS[:1])}, ValueError, "seen_users and seen_items must have one"),
        ({"seen": (USERS, ITEMS + 2)}, ValueError, "seen_items must lie"),
        ({"num_items": 0}, ValueError, r"num_items must lie in \[1, 2\^31\)"),
        ({"seed": -1}, ValueError, "seed must lie"),
        ({"draw": "items"}, ValueError, "must be 'pairs' or 'users', got 'items'"),
    ],
)
def test_what_cannot_be_sampled_is_refused(change, error, text):
    arguments = {"users": USERS, "items": ITEMS, "num_users": 3, "num_items": 5, "seed": 0}
    with pytest.raises(error, match=text):
        BprSampler(**(arguments | change))


def test_states_of_others_and_negative_counts_are_refused():
    with pytest.raises(ValueError, match="must be of seed 7, got"):
        make().load_state({"seed": 8, "drawn": 0})
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        make().sample(-1)
