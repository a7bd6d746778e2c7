"""PagedStorage: space, memory, failures, freezing."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from storage.worn_table import contents, worn

from varemb import optim
from varemb.ops import lookup
from varemb.storage import PackedStorage, PagedStorage, freeze, storage_of, thaw
from varemb.storage.extents import Extents
from varemb.testing import dims_of


@pytest.mark.parametrize("sizes", [range(41), (0, 3, 11, 40)])
@pytest.mark.parametrize("staged", [None, 10_240, 30_000])
def test_compaction_in_any_staging_keeps_every_row_and_leaves_no_gap(sizes, staged, monkeypatch):
    storage, total = worn(sizes)
    before = contents(storage, total)
    dims, present = storage.dims, storage.present()
    if staged is not None:  # a chunk of 256 rows of dim 40 takes 10,240
        monkeypatch.setattr("varemb.storage.compaction._STAGED_NUMBERS", staged)
    assert storage.fragmentation > 1.2
    chunks = storage.slots.chunks
    storage.compact()
    assert all(map(torch.equal, contents(storage, total), before))
    assert torch.equal(storage.dims, dims) and torch.equal(storage.present(), present)
    assert storage.fragmentation == 1.0 and storage.weight.numel() == storage.live_numbers
    assert storage.slots.chunks < chunks
    storage.compact()
    assert all(map(torch.equal, contents(storage, total), before))
    storage.resize(present.nonzero()[:50, 0], 40)
    assert torch.equal(contents(storage, total)[0][50:], before[0][50:])


def test_free_ranges_are_those_of_a_map():
    generator = random.Random(0)
    extents, free, taken = Extents(), [True] * 200, []
    extents.give(0, 200)
    for _ in range(600):
        if taken and generator.random() < 0.5:
            start, length = taken.pop(generator.randrange(len(taken)))
            extents.give(start, length)
            free[start : start + length] = [True] * length
        else:
            length = generator.randrange(1, 20)
            start = extents.take(length)
            gaps = [all(free[at : at + length]) for at in range(201 - length)]
            assert start == (gaps.index(True) if True in gaps else None)
            if start is not None:
                free[start : start + length] = [False] * length
                taken.append((start, length))
        assert extents.numbers == sum(free)
        edges = sum(here and not before for before, here in zip([False, *free], free, strict=False))
        assert len(extents.starts) == edges
        last = free[::-1].index(False) if False in free else 200
        assert extents.tail(200) == last


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to give pages back")
@pytest.mark.parametrize(("rows", "width"), [(8_000, 2048), (130_000, 64)])
def test_many_rows_change_in_parts(rows, width):
    """Slots made for later parts are still there when the first part has left many."""
    low, high = np.repeat([4, 8], rows // 2), np.repeat([8, 4], rows // 2)
    storage = PagedStorage(torch.from_numpy(low), width)
    with torch.no_grad():
        storage.weight.copy_(torch.arange(storage.weight.numel()) % 1000)
    before = storage.to_dense()[:, :4].clone()
    storage.resize(torch.arange(rows), high)
    assert np.array_equal(storage.dims.numpy(), high)
    assert torch.equal(storage.to_dense()[:, :4], before)
    offset, dim = storage.spans(np.arange(rows))
    order = offset.argsort()
    assert (offset[order][1:] >= (offset + dim)[order][:-1]).all()
    storage.resize(torch.arange(3), np.int64(2))
    assert storage.dims[:4].tolist() == [2, 2, 2, 8]


def test_no_second_buffer_is_resident_while_a_buffer_grows():
    code = """
import resource, torch
from varemb.storage.pages import moved, prefer_huge_pages
old = prefer_huge_pages(torch.empty(64 << 20)).fill_(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
new = moved(old, old.numel(), old.numel() + 1000)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert new[: 64 << 20].eq(1).all()
print((after - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64  # of 256 MiB


def test_chunks_without_rows_serve_other_dims():
    storage = PagedStorage(torch.full((600,), 8), 8)
    storage.remove(torch.arange(512))
    storage.extend(512, 4)
    assert storage.weight.numel() == 600 * 8
    storage.extend(512, 4)
    assert storage.weight.numel() == 600 * 8
    assert storage.live_numbers == 88 * 8 + 1024 * 4


def test_small_classes_waste_little_and_many_rows_need_few_chunks():
    storage = PagedStorage(torch.zeros(0, dtype=torch.int64), 128)
    for _ in range(40):
        rows = storage.extend(50, 2)
        storage.resize(rows[:20], 64)
    assert storage.fragmentation < 1.25
    assert storage.slots.chunks < 80


def test_index_takes_4_1_bytes_a_row():
    dims = dims_of("uniform", 300_000, 64)
    assert PagedStorage(dims, 64).index_nbytes() <= 4.1 * 300_000
    reserved = PagedStorage(dims, 64, reserve_numbers=int(dims.sum()) + 100_000)
    assert reserved.index_nbytes() <= 4.2 * 300_000
    storage = PagedStorage(dims, 64)
    storage.extend(1, 3)
    assert storage.num_rows > 300_001 and storage.index_nbytes() <= 4.15 * 300_001


@pytest.mark.parametrize("failing", range(4))
def test_without_memory_nothing_changes(failing, monkeypatch):
    storage = PagedStorage(torch.tensor([3, 0, 8, 1]), 8)
    optimizer = optim.Adam([storage.weight])
    weight, index = storage.weight, storage.index
    for value in (weight, *optimizer.state[weight].values()):
        with torch.no_grad():
            value.copy_(torch.arange(1.0, 1.0 + value.numel()).view(value.shape))
    tensors = (weight, index, *optimizer.state[weight].values())
    before = [tensor.detach().clone() for tensor in tensors]
    calls = []

    def moved(tensor, kept, numbers, room=0):
        calls.append(numbers)
        if len(calls) == failing + 1:
            raise RuntimeError("no memory")
        new = tensor.detach().new_zeros(numbers)
        new[:kept] = tensor.detach()[:kept]
        return new

    monkeypatch.setattr("varemb.storage.growing.moved", moved)
    if failing == 3:
        storage.resize([1], 8)  # three buffers grow, so that nothing fails
        assert len(calls) == 3
        return
    with pytest.raises(RuntimeError, match="no memory"):
        storage.resize([1, 3], 8)
    assert all(map(torch.equal, (t.detach() for t in tensors), before))
    assert storage.index is index and storage.live_numbers == 12
    monkeypatch.undo()
    storage.resize([1, 3], 8)
    assert storage.row(0).tolist() == [2.0, 3.0, 4.0] and storage.row(3)[:2].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("change", ["resize", "remove", "row"])
def test_absent_rows_are_refused_by_every_change(change):
    storage = PagedStorage(torch.tensor([3, -1, 8]), 8, reserve_rows=6)
    before = storage.weight.detach().clone()
    for row in (1, 4):
        with pytest.raises(IndexError, match=rf"{change}: rows must be rows .* got {row} .*absent"):
            {
                "resize": lambda row=row: storage.resize([0, row], 4),
                "remove": lambda row=row: storage.remove([0, row]),
                "row": lambda row=row: storage.row(row),
            }[change]()
    assert torch.equal(storage.weight, before) and storage.num_present == 2
    assert storage.extend(3, 1).tolist() == [1, 3, 4]


def test_removed_rows_are_used_again_the_last_one_first():
    storage = PagedStorage(torch.full((6,), 2), 4)
    storage.remove([4, 1])
    storage.remove([0])
    assert storage.extend(5, 3).tolist() == [0, 1, 4, 6, 7]
    with pytest.raises(ValueError, match="rows must be distinct, got 2 twice"):
        storage.remove([2, 2])


def test_sizes_are_the_only_dims():
    storage = PagedStorage(torch.tensor([2, 4]), 8, sizes=(2, 4, 8))
    for change in (lambda: storage.resize([0], 3), lambda: storage.extend(1, 3)):
        with pytest.raises(ValueError, match="dims must be one of 2, 4, 8, got 3 at position 0"):
            change()


def test_a_backward_of_a_lookup_before_the_change_is_refused():
    storage = PagedStorage(torch.tensor([2, 4]), 4)
    out = lookup(storage.weight, storage.rows, torch.tensor([1, 0]), backend="reference")
    storage.resize([0], 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_dense_gradient_moves_with_the_weight():
    storage = PagedStorage(torch.tensor([2, 4, 1]), 4)
    lookup(storage.weight, storage.rows, torch.arange(3), backend="reference").backward(
        torch.arange(1.0, 13.0).view(3, 4)
    )
    storage.resize([0, 1], [4, 3])
    grad = lookup(storage.weight.grad, storage.rows, torch.arange(3), backend="reference")
    assert grad.tolist() == [[1, 2, 0, 0], [5, 6, 7, 0], [9, 0, 0, 0]]
    assert storage.weight.grad.shape == storage.weight.shape


@pytest.mark.parametrize("width", [8, 300])
def test_freeze_and_thaw_keep_every_row(width):
    storage = PagedStorage(dims_of("uniform", 90, width), width)
    storage.copy_dense_(torch.randn(90, width))
    storage.resize([3, 5], [width, 1], "normal")
    storage.remove([7, 89])
    packed = freeze(storage)
    rows = storage.present().nonzero()[:, 0]
    values = lookup(storage.weight, storage.rows, rows, backend="reference")
    assert isinstance(packed, PackedStorage) and packed.num_rows == 90
    assert torch.equal(packed.to_dense()[rows], values) and not packed.to_dense()[[7, 89]].any()
    thawed = thaw(packed, reserve_rows=100)
    assert torch.equal(thawed.dims[:90], packed.dims)
    again = lookup(thawed.weight, thawed.rows, rows, backend="reference")
    assert torch.equal(again, values) and storage_of(thawed.weight) is thawed
    thawed.resize([0], width)
