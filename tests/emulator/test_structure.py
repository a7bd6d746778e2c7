"""Cases that only the structure of the CUDA kernels makes hard: tiles, parts, pieces of rows.

tests/test_emulator.py runs them on the emulated kernels; the CPU's own kernels must pass them too.
"""

import os

import pytest
import torch

from varemb.ops import lookup_bag, lookup_linear, reference
from varemb.testing import DTYPES, assert_agree, dims_of, make_table, runnable_backends

BACKENDS = [backend for backend in runnable_backends() if backend == "cpu"]


def cells(fields, sizes, shared=False):
    """groups [F, D + 1, 2] with a matrix for each size of each field, and how large it all is."""
    groups = torch.full((fields, max(sizes) + 1, 2), -1)
    first = group = 0
    for field in range(fields):
        if shared:
            first = group = 0
        for size in sizes:
            groups[field, size] = torch.tensor([first, group])
            first, group = first + size, group + 1
    return groups, first, group


def check_linear(backend, dims, indices, groups, matrix_rows, bias_rows, outputs, dtype):
    """Forward and all gradients of lookup_linear against the reference's."""
    width = groups.shape[1] - 1
    results = []
    weight, bias = torch.randn(matrix_rows, outputs), torch.randn(bias_rows, outputs)
    grad = torch.randn(indices.numel(), outputs).to(dtype)
    for name in (backend, "reference"):
        table = make_table(dims, width, dtype)
        leaves = [t.to(dtype).requires_grad_() for t in (weight, bias)]
        shape = indices.view(-1, groups.shape[0])
        out = lookup_linear(table.values, table.rows, shape, groups, *leaves, backend=name)
        out.backward(grad.view_as(out))
        results.append((out, table.values.grad, leaves[0].grad, leaves[1].grad))
    for got, expected in zip(*results, strict=True):
        assert_agree(got, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lookup_linear_with_rows_and_outputs_wider_than_a_tile(backend, dtype):
    sizes = [0, 1, 17, 64, 65, 130]
    dims = torch.tensor(sizes).repeat(20)
    indices = torch.randint(0, dims.numel(), (150,))
    check_linear(backend, dims, indices, *cells(1, sizes), 70, dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_linear_with_more_cells_than_a_block_has_threads(backend):
    sizes = [2, 3, 5]
    dims = torch.tensor(sizes).repeat(30)
    indices = torch.randint(0, dims.numel(), (600,))
    check_linear(backend, dims, indices, *cells(200, sizes), 3, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_linear_whose_fields_share_matrices(backend):
    sizes = [1, 4, 6]
    dims = torch.tensor(sizes).repeat(30)
    indices = torch.randint(0, dims.numel(), (1200,))
    check_linear(backend, dims, indices, *cells(4, sizes, shared=True), 9, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outputs", [1, 5])
def test_lookup_linear_adds_the_parts_of_long_groups(backend, outputs):
    dims = torch.full((50,), 6)
    indices = torch.randint(0, 50, (1500,))
    check_linear(backend, dims, indices, *cells(1, [6]), outputs, torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [0, 3])
@pytest.mark.parametrize("lookups", [0, 5])
def test_lookup_linear_without_numbers(backend, width, lookups):
    groups = torch.zeros(1, width + 1, 2, dtype=torch.int64)
    dims = torch.zeros(4, dtype=torch.int64)
    indices = torch.zeros(lookups, dtype=torch.int64)
    check_linear(backend, dims, indices, groups, width, 1, 3, torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("width", [9, 200, 1100])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_lookup_bag_in_pieces_of_rows_and_bags(backend, mode, width, padding_idx):
    table = make_table(dims_of("uniform", 40, width), width)
    indices = torch.randint(0, 40, (120,))
    offsets = torch.tensor([0, 0, 1, 2, 4, 7, 15, 16, 33, 34, 99, 120])
    limit = torch.randint(0, width + 1, (120,))
    weights = torch.randn(120) if mode == "sum" else None

    def run(backend):
        return lookup_bag(
            table.values.detach(), table.rows, indices, offsets, mode=mode, limit=limit,
            per_sample_weights=weights, padding_idx=padding_idx, backend=backend,
        )  # fmt: skip

    # The CUDA kernels add and round like the reference, the others may fuse products and sums.
    if mode == "max" or "EMULATOR_LIBRARY" in os.environ:
        assert torch.equal(run(backend), run("reference"))
    else:
        assert_agree(run(backend), run("reference"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lookup_that_does_not_count_may_have_any_weight(backend):
    table = make_table(torch.tensor([3, 2, 3]), 3)
    weights = torch.tensor([2.0, float("nan"), 3.0])
    indices, offsets = torch.tensor([0, 1, 2]), torch.tensor([0])
    out = lookup_bag(
        table.values.detach(), table.rows, indices, offsets, mode="sum",
        per_sample_weights=weights, padding_idx=1, backend=backend,
    )  # fmt: skip
    assert_agree(out, (2 * table.dense[0] + 3 * table.dense[2])[None])


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
@pytest.mark.parametrize("shift", [-40, -3, -1, 1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64], ids=str)
def test_repack_moves_a_row_over_itself(namespace, shift, dtype):
    numbers = torch.randperm(200).to(dtype)
    moves = torch.tensor([[60, 60 + shift, 70, 90]])
    expected = numbers.clone()
    reference.repack_(expected, numbers, moves)
    moved = numbers.clone()
    getattr(torch.ops, namespace).repack_(moved, moved, moves)
    assert torch.equal(moved, expected)
