"""update_: every rule against its formula, every backend against the reference."""

import pytest
import torch
from ops.cases import CASES, combine

from varemb.ops import coalesce, update_
from varemb.ops.update import ALGORITHMS
from varemb.testing import DTYPES, assert_agree, make_table, runnable_backends

BACKENDS = runnable_backends()
COMPARED = [backend for backend in BACKENDS if backend != "reference"]
HYPER = torch.tensor([0.1, 0.01, 1e-8, 0.9, 0.999, 3.0], dtype=torch.float64)


def states(table, algorithm):
    wide = torch.float64 if table.values.dtype == torch.float64 else torch.float32
    size = table.rows.num_rows if algorithm == "row_wise_adagrad" else table.rows.numbers
    first = None if algorithm == "sgd" else torch.rand(size, dtype=wide)
    second = torch.rand(table.rows.numbers, dtype=wide) if algorithm == "adam" else None
    return first, second


def sparse_grad(table, indices, dtype):
    grad = torch.randn(indices.numel(), table.rows.width).to(dtype)
    positions, numbers = coalesce(grad, table.rows, indices)
    return torch.sparse_coo_tensor(positions[None], numbers, (table.rows.numbers,))


@pytest.mark.parametrize(
    ("backend", "name", "dtype", "algorithm"),
    combine(COMPARED, CASES, DTYPES, ALGORITHMS),
    ids=str,
)
def test_update_agrees_with_the_reference(backend, name, dtype, algorithm):
    dims, width, indices = CASES[name]
    results = []
    for each in (backend, "reference"):
        torch.manual_seed(5)
        table = make_table(dims, width, dtype)
        first, second = states(table, algorithm)
        before = table.values.detach().clone()
        grad = sparse_grad(table, indices, dtype)
        with torch.no_grad():
            update_(
                table.values, first, second, HYPER, None, table.rows, grad,
                algorithm=ALGORITHMS[algorithm], backend=each,
            )  # fmt: skip
        untouched = torch.ones(table.rows.numbers, dtype=torch.bool)
        untouched[grad.coalesce().indices()[0]] = False
        assert torch.equal(table.values[untouched], before[untouched])
        results.append((table.values.detach(), first, second))
    for got, expected in zip(*results, strict=True):
        if expected is not None:
            assert_agree(got, expected, dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_update_by_hand(backend):
    """One row of two numbers, p = (1, 2), g = (3, 4), lr 0.5."""
    table = make_table(torch.tensor([2, 1]), 2, torch.float64)
    grad = torch.sparse_coo_tensor([[0, 1]], torch.tensor([3.0, 4.0]).double(), (3,))

    def step(algorithm, first, second, eps=0.0):
        hyper = torch.tensor([0.5, 0, eps, 0.9, 0.99, 1], dtype=torch.float64)
        with torch.no_grad():
            table.values.copy_(torch.tensor([1.0, 2.0, 9.0]))
            update_(
                table.values, first, second, hyper, None, table.rows, grad,
                algorithm=ALGORITHMS[algorithm], backend=backend,
            )  # fmt: skip
        return table.values.detach()

    zeros = [torch.zeros(n, dtype=torch.float64) for n in (3, 2, 3, 3)]
    assert_agree(step("sgd", None, None), torch.tensor([-0.5, 0.0, 9.0]).double())
    assert_agree(step("adagrad", zeros[0], None), torch.tensor([0.5, 1.5, 9.0]).double())
    rate = 0.5 / (25 / 2) ** 0.5
    row_wise = torch.tensor([1 - 3 * rate, 2 - 4 * rate, 9.0], dtype=torch.float64)
    assert_agree(step("row_wise_adagrad", zeros[1], None), row_wise)
    assert zeros[1].tolist() == [12.5, 0]
    assert_agree(step("adam", zeros[2], zeros[3]), torch.tensor([0.5, 1.5, 9.0]).double())


def test_update_of_a_row_uses_its_own_dim_not_the_width():
    """Row-wise Adagrad divides by d[r], 2, not by D, 64."""
    table = make_table(torch.tensor([2]), 64)
    state = torch.zeros(1)
    grad = torch.sparse_coo_tensor([[0, 1]], torch.ones(2), (2,))
    with torch.no_grad():
        update_(table.values, state, None, HYPER * 0, None, table.rows, grad, algorithm=2)
    assert state.item() == 1.0


def test_update_refuses_what_does_not_fit():
    table = make_table(torch.tensor([2, 3]), 3)
    values, rows = table.values.detach(), table.rows
    grad = torch.sparse_coo_tensor([[0, 1]], torch.ones(2), (5,))
    with pytest.raises(ValueError, match="grad must be sparse"):
        update_(values, None, None, HYPER, None, rows, torch.zeros(5), algorithm=0)
    with pytest.raises(ValueError, match="state1 is missing"):
        update_(values, None, None, HYPER, None, rows, grad, algorithm=1, backend="cpu")
    with pytest.raises(ValueError, match="state1 does not belong"):
        update_(values, torch.zeros(5), None, HYPER, None, rows, grad, algorithm=0, backend="cpu")
    with pytest.raises(ValueError, match="state1 must have 2 numbers"):
        update_(values, torch.zeros(5), None, HYPER, None, rows, grad, algorithm=2, backend="cpu")
    with pytest.raises(ValueError, match="must begin at its first number"):
        inside = torch.sparse_coo_tensor([[3]], torch.ones(1), (5,))
        update_(values, None, None, HYPER, None, rows, inside, algorithm=0, backend="cpu")


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_update_opcheck(namespace, algorithm):
    dims, width, indices = CASES["repeats"]
    table = make_table(dims, width)
    ops, rows = getattr(torch.ops, namespace), table.rows
    first, second = states(table, algorithm)
    state = (table.values.detach(), first, second, HYPER, None)
    grad = sparse_grad(table, indices, torch.float32).coalesce()
    jagged = (rows.index, grad.indices()[0].clone(), grad.values().clone())
    where = (rows.num_rows, rows.width, rows.granule, ALGORITHMS[algorithm])
    torch.library.opcheck(ops.update_.default, (*state, *jagged, *where))
    block = torch.randn(indices.numel(), width)
    looked_up = (block, rows.index, indices, None, None, None, None, rows.num_rows, rows.granule)
    call = (*state, *looked_up, 0, -1, False, ALGORITHMS[algorithm])
    torch.library.opcheck(ops.coalesce_update_.default, call)
