"""Bad numbers that only the device sees: in the emulator a device assert is an IndexError.

These tests run on the emulated kernels (tests/test_emulator.py); on the CPU's own kernels the
errors have their own tests.
"""

import os

import pytest
import torch

from varemb.ops import coalesce, lookup, lookup_bag, lookup_linear
from varemb.testing import dims_of, make_table

pytestmark = pytest.mark.skipif(
    "EMULATOR_LIBRARY" not in os.environ, reason="only the emulated kernels have device asserts"
)
BAD = [-1, 40, 2**40, -(2**40)]


def table_and_indices(bad, position):
    indices = torch.randint(0, 40, (1000,))
    indices[position] = bad
    return make_table(dims_of("uniform", 40, 8), 8), indices


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("position", [0, 500, 999])
def test_an_index_outside_the_table_is_refused(bad, position):
    table, indices = table_and_indices(bad, position)
    values, rows = table.values.detach(), table.rows
    offsets = torch.arange(0, 1000, 7)
    groups = torch.zeros(1, 9, 2, dtype=torch.int64)
    weight, bias = torch.zeros(8, 3), torch.zeros(1, 3)
    grad = torch.zeros(offsets.numel(), 8)
    where = (rows.num_rows, rows.granule, -1, False)
    calls = [
        lambda: lookup(values, rows, indices),
        lambda: lookup_bag(values, rows, indices, offsets, mode="sum"),
        lambda: lookup_bag(values, rows, indices, offsets, mode="max"),
        lambda: torch.ops.varemb.lookup_bag_weights_backward(
            grad, values, rows.index, indices, offsets, None, *where
        ),
        lambda: lookup_linear(values, rows, indices, groups, weight, bias),
        lambda: coalesce(torch.zeros(1000, 8), rows, indices),
    ]
    for call in calls:
        with pytest.raises(IndexError, match="outside the table"):
            call()


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 5, 3], "must not decrease"),
        ([1, 2], "start at 0"),
        # Which of two broken promises is seen first depends on the thread that runs first.
        ([0, 11], "must not decrease|pass the number of indices"),
        ([0, -3, 4], "must not decrease|pass the number of indices"),
    ],
)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_broken_offsets_are_refused(offsets, message, mode):
    table = make_table(dims_of("equal", 30, 6), 6)
    indices = torch.zeros(10, dtype=torch.int64)
    with pytest.raises(IndexError, match=message):
        lookup_bag(table.values.detach(), table.rows, indices, torch.tensor(offsets), mode=mode)


@pytest.mark.parametrize("place", [-1, 40])
def test_a_cell_without_a_matrix_is_refused(place):
    table, indices = table_and_indices(0, 0)
    weight, bias = torch.zeros(8, 3), torch.zeros(1, 3)
    for column, message in ((0, "no matrix"), (1, "no matrix")):
        groups = torch.zeros(1, 9, 2, dtype=torch.int64)
        groups[..., column] = place
        with pytest.raises(IndexError, match=message):
            lookup_linear(table.values.detach(), table.rows, indices, groups, weight, bias)


@pytest.mark.parametrize(
    "move",
    [(9, 0, 2, 2), (0, 9, 1, 2), (-1, 0, 1, 1), (0, -1, 1, 1), (0, 0, 2, 1), (0, 0, -1, 1),
     (2**62, 0, 2**62, 2**62)],
)  # fmt: skip
def test_moves_out_of_range_are_refused(move):
    moves = torch.tensor([(0, 0, 1, 1), move])
    with pytest.raises(IndexError, match="a move leaves the tensors"):
        torch.ops.varemb.repack_(torch.zeros(10), torch.zeros(10), moves)


def test_an_index_that_describes_too_much_is_refused():
    table = make_table(dims_of("equal", 40, 8), 8)
    values, rows = table.values.detach()[:-1].clone(), table.rows
    with pytest.raises(IndexError, match="describes more numbers"):
        torch.ops.varemb.lookup(values, rows.index, torch.tensor([39]), None, 40, 8, 1)
