"""Gradients are computed once: a second derivative raises, where torch would take it for 0."""

import pytest
import torch

import varemb
from varemb import VarEmbedding, VarEmbeddingBag
from varemb.testing import runnable_backends

BACKENDS = runnable_backends()


def calls(backend, sparse=False):
    """Each operation, its message's name, its table and what is differentiated."""
    rows, bags = torch.tensor([0, 4, 4, 1]), torch.tensor([0, 3])
    table = VarEmbedding(5, 6, sparse=sparse, backend=backend)
    bag = VarEmbeddingBag(5, 6, mode="sum", sparse=sparse, backend=backend)
    linear = VarEmbedding(5, 6, dims=[6, 1, 2, 2, 6], unify="linear", sparse=sparse)
    return [
        ("lookup", lambda: table(rows), table.weight),
        ("lookup_bag", lambda: bag(rows, bags), bag.weight),
        ("lookup_linear", lambda: linear(rows), linear.weight),
    ]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("case", range(3), ids=["lookup", "lookup_bag", "lookup_linear"])
def test_double_backward_is_refused_by_name(backend, sparse, case):
    op, call, weight = calls(backend, sparse)[case]
    scale = torch.ones(6, requires_grad=True)
    loss = (call() * scale).sigmoid().sum()
    (plain,) = torch.autograd.grad(loss, weight, retain_graph=True)
    (grad,) = torch.autograd.grad(loss, weight, create_graph=True)
    assert not plain.requires_grad and torch.equal(grad.to_dense(), plain.to_dense())
    grad = grad.coalesce().values() if sparse else grad
    with pytest.raises(RuntimeError, match=rf"^{op}: double backward is not supported"):
        grad.square().sum().backward()


def test_gradients_that_depend_on_the_table_alone_are_refused_too():
    """Linear in what comes back, the product with the rows is lost all the same."""
    bag = VarEmbeddingBag(5, 6, mode="sum")
    weights = torch.rand(2, 3, requires_grad=True)
    out = bag(torch.tensor([[0, 1, 2], [4, 4, 4]]), per_sample_weights=weights).sum()
    (grad,) = torch.autograd.grad(out, weights, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^lookup_bag: double backward is not supported"):
        grad.square().sum().backward()


def test_double_backward_of_matrices_beside_a_fused_optimizer_is_refused():
    table = VarEmbedding(5, 6, unify="linear")
    varemb.optim.SGD([table.weight], lr=0.1, fused=True)
    before = table.to_dense()
    matrix = table.unify.weight
    out = table(torch.tensor([0, 4])).sigmoid().sum()
    (grad,) = torch.autograd.grad(out, matrix, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^lookup_linear: double backward is not supported"):
        grad.square().sum().backward()
    assert table.to_dense().ne(before).any(1).tolist() == [True, False, False, False, True]


def test_a_second_derivative_that_does_not_pass_through_a_gradient_is_torchs():
    """d/dx of a gradient in x, which lookups only feed, and gradients that are constant."""
    table = VarEmbedding(5, 6)
    rows, scale = table(torch.tensor([0, 4])), torch.ones(6, requires_grad=True)
    (grad,) = torch.autograd.grad((rows * scale).square().sum(), scale, create_graph=True)
    grad.sum().backward()
    assert torch.allclose(table.weight.grad.view(5, 6)[[0, 4]], 4 * rows.detach())
    (constant,) = torch.autograd.grad(
        table(torch.tensor([1])).sum(), table.weight, create_graph=True
    )
    assert not constant.requires_grad


def test_double_backward_of_a_compiled_lookup_is_refused():
    torch._dynamo.reset()
    table, scale = VarEmbedding(5, 6), torch.ones(6, requires_grad=True)
    for backend, message in [
        ("eager", r"^lookup: double backward is not supported"),
        ("aot_eager", "does not currently support double backward"),
    ]:
        call = torch.compile(table, fullgraph=True, backend=backend)
        loss = (call(torch.tensor([0, 4])) * scale).sigmoid().sum()
        (grad,) = torch.autograd.grad(loss, table.weight, create_graph=True)
        with pytest.raises(RuntimeError, match=message):
            grad.square().sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_from_rows_that_a_fused_update_changed_are_refused(backend):
    """Of matrices and of per_sample_weights; those of the rows alone are updates one by one."""
    linear = VarEmbedding(3, 2, unify="linear", backend=backend)
    bag = VarEmbeddingBag(3, 2, mode="sum", backend=backend)
    varemb.optim.SGD([linear.weight, bag.weight], lr=1.0)
    rows, weights = torch.arange(3), torch.rand(1, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^lookup_linear: the gradient of the matrices needs"):
        (linear(rows) + linear(rows)).sum().backward()
    with pytest.raises(RuntimeError, match=r"^lookup_bag: the gradient of per_sample_weights need"):
        (bag(rows[None], per_sample_weights=weights) + bag(rows[None])).sum().backward()
    for _ in range(2):
        linear(rows).sum().backward()
        bag(rows[None], per_sample_weights=weights).sum().backward()
    (bag(rows[None]) + bag(rows[None])).sum().backward()
    linear.unify.requires_grad_(False)
    (linear(rows) + linear(rows)).sum().backward()


@pytest.mark.parametrize("unify", ["linear", "chain"])
def test_a_table_of_rows_without_numbers_gives_biases(unify):
    """No matrix has a row then."""
    outs = []
    for backend in BACKENDS:
        torch.manual_seed(0)
        table = VarEmbedding(3, 4, dims=0, unify=unify, backend=backend)
        outs.append(table(torch.tensor([0, 2])))
        outs[-1].sum().backward()
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_negative_limits_of_a_tensor_count_as_0(backend):
    table = VarEmbedding(3, 4, backend=backend)
    limit = torch.tensor([-(2**32) + 3, -1, 2])
    assert (table(torch.arange(3), limit=limit) != 0).sum(1).tolist() == [0, 0, 2]
