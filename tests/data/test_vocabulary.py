import numpy as np
import pytest

from varemb.data import vocabulary as vocabulary_module
from varemb.data.vocabulary import ValueCounts, make_vocabulary


def count(keys):
    return np.unique(np.asarray(keys, np.int64), return_counts=True)


@pytest.mark.parametrize("least", [1, 50, 1 << 16])
def test_counts_are_exact_however_the_batches_fall(monkeypatch, least):
    monkeypatch.setattr(vocabulary_module, "_MIN_PENDING", least)
    draw = np.random.default_rng(0)
    # Few values many times, many values once, both ends of the range, and negative keys.
    keys = np.concatenate(
        [draw.zipf(1.3, 4000) % 2**40, -draw.integers(0, 9, 900), [2**63 - 1, -(2**63)]]
    ).astype(np.int64)
    draw.shuffle(keys)
    counts = ValueCounts()
    for part in np.split(keys, np.sort(draw.integers(0, len(keys), 37))):
        distinct, times = count(part)
        order = draw.permutation(len(distinct))
        counts.add(distinct[order], times[order])
    counts.merge()
    expected, times = count(keys)
    assert counts.keys.tolist() == expected.tolist()
    assert counts.counts.tolist() == times.tolist()


def test_keys_wait_for_few_merges_only(monkeypatch):
    # Every merge copies all keys: a merge per batch would be quadratic.
    merges = []
    plain = ValueCounts.merge
    monkeypatch.setattr(vocabulary_module, "_MIN_PENDING", 10)
    monkeypatch.setattr(
        ValueCounts, "merge", lambda self: (merges.append(len(self.keys)), plain(self))
    )
    counts = ValueCounts()
    for first in range(0, 100_000, 10):
        counts.add(*count(range(first, first + 10)))
        assert counts._num_pending <= max(10, len(counts.keys) // 4)
        assert len(counts._pending) <= vocabulary_module._MAX_BATCHES
    assert sum(merges) < 5 * 100_000


def test_ids_count_the_kept_keys_from_one():
    counts = {"a": ValueCounts(), "b": ValueCounts()}
    counts["a"].add(*count([5, 5, -3, -3, -3, 9]))
    counts["b"].add(*count([1, 2, 3, 4, 5, 6]))
    made = make_vocabulary("toy", 6, counts, {"a": 2, "b": 2})
    assert made.cardinalities == (3, 1)
    assert made.find("a", np.array([9, 5, -3, 100, -100])).tolist() == [0, 2, 1, 0, 0]
    assert made.find("b", np.array([1, 7])).tolist() == [0, 0]
    assert made.constant_fields == ("b",)
    assert made.counts["a"].tolist() == [3, 2]
    assert made.distinct == {"a": 3, "b": 6}
