"""IdMap: rows by order of first appearance, whatever the threads, the batches and the ids."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch

from varemb import _native
from varemb.files import load_state, save_state
from varemb.id_map import IdMap

pytestmark = pytest.mark.skipif(
    _native.host_missing() is not None, reason=f"varemb._host: {_native.host_missing()}"
)

LARGEST = 2**63 - 1
# What must be told apart: neighbours, strides of pages and of 2^32, the ends, and noise.
KINDS = {
    "sequence": np.arange(60_000),
    "descending": LARGEST - np.arange(60_000),
    "stride 4096": np.arange(60_000) * 4096,
    "stride 2^32": np.arange(60_000) << 32,
    "stride 2^47": np.arange(60_000) << 47,
    "low bits alike": (np.arange(60_000) << 20) + 77,
    "noise": np.random.default_rng(0).integers(0, LARGEST, 60_000),
}


def rows_by_dictionary(known: dict[int, int], ids: np.ndarray) -> list[int]:
    return [known.setdefault(id_, len(known)) for id_ in ids.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 4])
def test_rows_equal_a_dictionary_batch_after_batch(kind, threads):
    generator = np.random.default_rng(1)
    ids = KINDS[kind]
    mapped, known = IdMap(), {}
    for size in (1, 0, 31, 33, 500, 40_000, 40_000, 7):
        batch = ids[generator.integers(0, max(1, len(ids) * size // 40_000), size)]
        assert mapped.rows(batch, grow=True, threads=threads).tolist() == rows_by_dictionary(
            known, batch
        )
        assert len(mapped) == len(known)
    assert mapped.ids().tolist() == list(known)
    expected = [known.get(id_, -1) for id_ in ids.tolist()]
    assert -1 in expected and mapped.rows(ids, grow=False, threads=threads).tolist() == expected
    assert len(mapped) == len(known)


def test_every_bit_of_an_id_moves_every_bit_of_its_hash():
    """So that ids that differ in any way spread over shards, buckets and tags."""
    mix = _native.host().mix
    for kind, ids in KINDS.items():
        some = ids[:4_000].astype(np.uint64)
        hashes = mix(some)
        assert len(np.unique(hashes)) == len(some)
        for bit in range(63):
            moved = hashes ^ mix(some ^ np.uint64(1 << bit))
            shares = np.unpackbits(moved.view(np.uint8).reshape(-1, 8), axis=1).mean(0)  # [64]
            assert np.abs(shares - 0.5).max() < 0.06, (kind, bit)  # 7 standard deviations


@pytest.mark.parametrize("count", [300_000, 377_000, 450_000])
def test_an_id_takes_at_most_sixteen_bytes(count):
    mapped = IdMap()
    mapped.rows(np.arange(count), grow=True)
    assert 8 + 4 < mapped.nbytes / count <= 16
    reserved = IdMap(count)
    before = reserved.nbytes
    reserved.rows(np.arange(count), grow=True)
    assert reserved.nbytes - before <= count * 8 + 80_000, "the reserved part grew"


def test_tensors_come_back_as_tensors():
    mapped = IdMap()
    rows = mapped.rows(torch.tensor([9, 9, 0, LARGEST]), grow=True)
    assert rows.dtype == torch.int64 and rows.tolist() == [0, 0, 1, 2]
    every_second = torch.arange(10)[::2]
    assert mapped.rows(every_second, grow=True).tolist() == [1, 3, 4, 5, 6]
    assert mapped.rows(np.array([4, 0], np.uint64), grow=False).tolist() == [4, 1]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("place", [0, 31, 32, 70_000])
def test_a_bad_id_is_named_and_nothing_is_added(place, threads):
    mapped = IdMap()
    ids = np.arange(80_000)
    ids[[place, 75_000]] = -5, -6
    with pytest.raises(ValueError, match=rf"2\^63 - 1\], got -5 .* at position {place}$"):
        mapped.rows(ids, grow=True, threads=threads)
    assert len(mapped) == 0 and mapped.rows(ids[-5:], grow=False).tolist() == [-1] * 5
    large = np.array([3, 2**63], np.uint64)
    with pytest.raises(ValueError, match=r"as uint64 9223372036854775808\) at position 1"):
        mapped.rows(large, grow=True)


@pytest.mark.parametrize(
    ("ids", "error", "text"),
    [
        (np.zeros(2, np.int32), TypeError, "must be int64, got int32"),
        (torch.zeros(2), TypeError, "must be int64, got torch.float32"),
        (np.array(["a"]), TypeError, "must be int64, got <U1"),
        ([1, 2], TypeError, "must be a numpy array or a tensor, got list"),
        (np.zeros((2, 1), np.int64), ValueError, "must be 1-D, got 2-D"),
        (torch.tensor(3), ValueError, "must be 1-D, got 0-D"),
        (torch.zeros(2, dtype=torch.int64, device="meta"), TypeError, "on the CPU, got meta"),
    ],
)
def test_other_ids_are_refused(ids, error, text):
    with pytest.raises(error, match=text):
        IdMap().rows(ids, grow=True)


def test_a_saved_map_is_the_same_map(tmp_path):
    mapped = IdMap()
    mapped.rows(KINDS["noise"], grow=True)
    save_state(tmp_path / "map.safetensors", {"users": mapped.state()})
    again = IdMap.from_ids(load_state(tmp_path / "map.safetensors")["users"]["ids"])
    for other in (again, copy.deepcopy(mapped), pickle.loads(pickle.dumps(mapped))):
        other.rows(np.array([LARGEST]), grow=True)
        assert len(other) == len(mapped) + 1
        assert (other.rows(KINDS["noise"], grow=False) == np.arange(60_000)).all()
    with pytest.raises(ValueError, match="must be distinct, got 7 at positions 1 and 3"):
        IdMap.from_ids(np.array([5, 7, 6, 7]))
    with pytest.raises(ValueError, match="capacity must lie in"):
        IdMap(-1)


def test_python_threads_share_a_map():
    """Lookups beside additions: every row that comes back is right."""
    mapped, ids = IdMap(), np.random.default_rng(0).permutation(200_000)
    wrong = []

    def work(start: int) -> None:
        for begin in range(start, len(ids), 4_000):
            batch = ids[begin : begin + 1_000]
            first = mapped.rows(batch, grow=True)
            if (mapped.rows(batch, grow=False) != first).any():
                wrong.append(begin)

    threads = [threading.Thread(target=work, args=(1_000 * i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and sorted(mapped.ids().tolist()) == list(range(200_000))
    assert (mapped.rows(mapped.ids(), grow=False) == np.arange(200_000)).all()
