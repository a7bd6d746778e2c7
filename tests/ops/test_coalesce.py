"""coalesce: one gradient per distinct row, the same in every backend."""

import pytest
import torch
from ops.cases import CASES, assert_sums_agree, combine_dtypes

from varemb.ops import coalesce
from varemb.testing import assert_agree, make_table, runnable_backends

BACKENDS = runnable_backends()


@pytest.mark.parametrize(("backend", "name", "dtype"), combine_dtypes(BACKENDS), ids=str)
def test_coalesce_adds_repeated_rows(backend, name, dtype):
    dims, width, indices = CASES[name]
    table = make_table(dims, width, dtype)
    grad = torch.randn(indices.numel(), width).to(dtype)
    positions, numbers = coalesce(grad, table.rows, indices, backend=backend)
    expected = torch.zeros(dims.numel(), width, dtype=torch.float64)
    expected.index_add_(0, indices, grad.double())
    stored = table.storage.dims
    touched = torch.zeros(dims.numel(), dtype=torch.bool)
    touched[indices] = True
    kept = (torch.arange(width) < stored[:, None]) & touched[:, None]
    assert positions.numel() == int(stored[touched].sum())
    assert bool((positions.diff() > 0).all())
    assert_agree(numbers, expected[kept].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_coalesce_by_hand(backend):
    table = make_table(torch.tensor([2, 1, 3]), 3)
    indices = torch.tensor([2, 0, 2, 1])
    grad = torch.tensor([[1, 2, 3], [10, 20, 9], [4, 5, 6], [7, 8, 9]], dtype=torch.float32)
    positions, numbers = coalesce(grad, table.rows, indices, padding_idx=1, backend=backend)
    assert positions.tolist() == [0, 1, 3, 4, 5]
    assert numbers.tolist() == [10, 20, 5, 7, 9]
    positions, numbers = coalesce(
        grad, table.rows, indices, limit=torch.tensor([1, 0, 2, 1]), backend=backend
    )
    assert positions.tolist() == [2, 3, 4]
    assert numbers.tolist() == [7, 5, 5]


@pytest.mark.parametrize("name", ["repeats", "odd_width", "skewed_dims"])
def test_coalesce_backends_agree_bit_for_bit(name):
    dims, width, indices = CASES[name]
    table, grad = make_table(dims, width), torch.randn(indices.numel(), width)
    results = [coalesce(grad, table.rows, indices, backend=backend) for backend in BACKENDS]
    for backend, (positions, numbers) in zip(BACKENDS, results, strict=True):
        assert torch.equal(positions, results[-1][0])
        assert_sums_agree(backend, name, numbers, results[-1][1])


def test_coalesce_does_not_depend_on_the_number_of_threads():
    dims, width, _ = CASES["skewed_dims"]
    indices = (torch.rand(50000) ** 3 * dims.numel()).long()
    table, grad = make_table(dims, width), torch.randn(indices.numel(), width)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(coalesce(grad, table.rows, indices))
    torch.set_num_threads(before)
    assert all(torch.equal(r[0], results[0][0]) for r in results)
    assert all(torch.equal(r[1], results[0][1]) for r in results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_coalesce_refuses_what_does_not_fit(backend):
    table = make_table(torch.tensor([2, 1, 3]), 3)
    with pytest.raises(ValueError, match=r"grad must have shape \[2, 3\], got \[2, 2\]"):
        coalesce(torch.zeros(2, 2), table.rows, torch.tensor([0, 1]), backend=backend)
    with pytest.raises(IndexError, match="got 3 at position 1"):
        coalesce(torch.zeros(2, 3), table.rows, torch.tensor([0, 3]), backend=backend)


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
def test_coalesce_opcheck(namespace):
    dims, width, indices = CASES["repeats"]
    ops, rows = getattr(torch.ops, namespace), make_table(dims, width).rows
    grad = torch.randn(indices.numel(), width)
    call = (grad, rows.index, indices, None, None, None, None, rows.num_rows, rows.granule, 0, -1)
    torch.library.opcheck(ops.coalesce_dense.default, (*call, False, rows.numbers))
    torch.library.opcheck(ops.coalesce.default, (*call, False, rows.numbers))
