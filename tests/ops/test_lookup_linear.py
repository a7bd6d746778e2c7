"""lookup_linear: every backend against one matrix product per group."""

import pytest
import torch

from varemb.ops import lookup_linear
from varemb.testing import DTYPES, assert_agree, make_table, runnable_backends

BACKENDS = runnable_backends()
CARDINALITIES, WIDTH = (30, 7, 40), 9


def problem(dtype, outputs):
    """Three fields; the last one has rows of two sizes. Table, groups, weight, bias, ids."""
    torch.manual_seed(3)
    dims = torch.cat([torch.full((30,), 9), torch.full((7,), 0), torch.tensor([2, 5] * 20)])
    groups = torch.full((3, WIDTH + 1, 2), -1)
    members, first = [(0, 9), (1, 0), (2, 2), (2, 5)], 0
    for group, (field, size) in enumerate(members):
        groups[field, size] = torch.tensor([first, group])
        first += size
    weight = torch.randn(first, outputs).to(dtype).requires_grad_()
    bias = torch.randn(len(members), outputs).to(dtype).requires_grad_()
    starts = torch.tensor([0, 30, 37])
    ids = torch.stack([torch.randint(0, c, (50,)) for c in CARDINALITIES], 1) + starts
    return make_table(dims, WIDTH, dtype), groups, weight, bias, ids


def expected_output(table, dense, groups, weight, bias, indices):
    out = []
    for row in indices:
        for field, index in enumerate(row.tolist()):
            dim = int(table.storage.dims[index])
            first, group = groups[field, dim].tolist()
            out.append(dense[index, :dim] @ weight[first : first + dim] + bias[group])
    return torch.stack(out).view(*indices.shape, -1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("outputs", [1, 9, 16, 100])
def test_lookup_linear_is_a_product_per_group(backend, dtype, outputs):
    table, groups, weight, bias, indices = problem(dtype, outputs)
    out = lookup_linear(table.values, table.rows, indices, groups, weight, bias, backend=backend)
    dense, wide, offset = (
        t.detach().double().requires_grad_() for t in (table.dense, weight, bias)
    )
    expected = expected_output(table, dense, groups, wide, offset, indices)
    assert_agree(out, expected.to(dtype))
    grad = torch.randn(out.shape).to(dtype)
    out.backward(grad)
    expected.backward(grad.double())
    kept = torch.arange(WIDTH) < table.storage.dims[:, None]
    assert_agree(table.values.grad, dense.grad[kept].to(dtype))
    assert_agree(weight.grad, wide.grad.to(dtype))
    assert_agree(bias.grad, offset.grad.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_linear_refuses_a_row_without_a_matrix(backend):
    table, groups, weight, bias, indices = problem(torch.float32, 4)
    groups[2, 5] = -1
    indices[:, 2] = 38  # a row of dim 5
    with pytest.raises(ValueError, match="no matrix for rows of dim 5 in field 2"):
        lookup_linear(table.values, table.rows, indices, groups, weight, bias, backend=backend)


def test_lookup_linear_refuses_what_does_not_fit():
    table, groups, weight, bias, indices = problem(torch.float32, 4)
    with pytest.raises(ValueError, match="last axis of indices must have 3 fields"):
        lookup_linear(table.values, table.rows, indices[:, :2], groups, weight, bias)
    with pytest.raises(ValueError, match=r"must be torch\.float32 like the values"):
        lookup_linear(table.values, table.rows, indices, groups, weight.double(), bias)
    indices[49, 2] = 77
    with pytest.raises(IndexError, match=r"\[0, 77\), got 77 at position 149"):
        lookup_linear(table.values, table.rows, indices, groups, weight, bias)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lookup_linear_gradcheck(backend):
    table, groups, weight, bias, indices = problem(torch.float64, 3)

    def run(values, weight, bias):
        return lookup_linear(values, table.rows, indices[:4], groups, weight, bias, backend=backend)

    # Interpreted, a call takes 0.1 s and every number two calls: checked in random directions.
    is_fast = backend == "triton"
    assert torch.autograd.gradcheck(run, (table.values, weight, bias), fast_mode=is_fast)


@pytest.mark.parametrize("namespace", ["varemb", "varemb_reference"])
def test_lookup_linear_opcheck(namespace):
    table, groups, weight, bias, indices = problem(torch.float32, 4)
    ops, rows = getattr(torch.ops, namespace), table.rows
    flat, where = indices.reshape(-1), (rows.num_rows, rows.width, rows.granule)
    linear = (rows.index, flat, groups, weight, bias, *where)
    trained = (table.values, *[None] * 5, *linear, -1, 0, 0)
    torch.library.opcheck(ops.lookup_linear_trained.default, trained)
    plain = [t.detach() if isinstance(t, torch.Tensor) else t for t in linear]
    torch.library.opcheck(ops.lookup_linear.default, (table.values.detach(), *plain))
    grad = torch.randn(flat.numel(), 4)
    torch.library.opcheck(ops.lookup_linear_backward.default, (grad, table.values.detach(), *plain))


def test_weight_gradient_does_not_depend_on_the_number_of_threads():
    before, grads = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        table, groups, weight, bias, indices = problem(torch.float32, 16)
        indices = indices.repeat(100, 1)
        out = lookup_linear(table.values, table.rows, indices, groups, weight, bias)
        out.square().sum().backward()
        grads.append((table.values.grad, weight.grad, bias.grad))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for g in grads[1:] for a, b in zip(g, grads[0], strict=True))


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "triton"])
@pytest.mark.parametrize("outputs", [16, 64, 70])
@pytest.mark.parametrize("is_shared", [False, True], ids=["apart", "shared"])
def test_lookup_linear_of_many_lookups_in_a_group(backend, outputs, is_shared):
    torch.manual_seed(5)
    dims = torch.tensor([13, 64] * 20)
    groups = torch.full((1, 65, 2), -1)
    groups[0, 13] = torch.tensor([0, 0])
    # Shared: both sizes multiply by the first lines of one matrix and add one bias.
    groups[0, 64] = torch.tensor([0, 0] if is_shared else [13, 1])
    indices = torch.randint(0, 40, (2999,))
    table = make_table(dims, 64, torch.float64)
    weight = torch.randn(77, outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, outputs, dtype=torch.float64, requires_grad=True)
    out = lookup_linear(table.values, table.rows, indices, groups, weight, bias, backend=backend)
    dense, wide, offset = (t.detach().clone().requires_grad_() for t in (table.dense, weight, bias))
    first, group = groups[0, dims[indices]].unbind(1)  # [L], [L]
    lines = first[:, None] + torch.arange(64)  # beyond a row's dim the dense row is zero
    expected = torch.einsum("lk,lko->lo", dense[indices], wide[lines.clamp(max=76)]) + offset[group]
    assert_agree(out, expected)
    grad = torch.randn_like(out)
    out.backward(grad)
    expected.backward(grad)
    kept = torch.arange(64) < dims[:, None]
    assert_agree(table.values.grad, dense.grad[kept])
    assert_agree(weight.grad, wide.grad)
    assert_agree(bias.grad, offset.grad)
