"""LightGCN: the graph, propagation and its gradient, narrow blocks, and the loss."""

import pytest
import torch
from torch.nn import functional as F

from varemb import VarEmbedding
from varemb.models.lightgcn import LightGCN, bpr_loss, normalized_adjacency, propagate


@pytest.fixture
def graph():
    draw = torch.Generator().manual_seed(0)
    left = torch.randint(6, (30,), generator=draw)  # repeats are certain: 24 distinct edges at most
    right = torch.randint(6, 10, (30,), generator=draw)
    return left, right, normalized_adjacency(left, right, 11)  # node 10 has no edge


def test_adjacency_is_symmetric_and_counts_an_edge_once(graph):
    left, right, adjacency = graph
    plain = torch.zeros(11, 11)
    plain[left, right] = plain[right, left] = 1
    scale = plain.sum(1).clamp(min=1).rsqrt()
    expected = scale[:, None] * plain * scale
    torch.testing.assert_close(adjacency.to_dense(), expected)
    assert adjacency.values().isfinite().all()


def test_adjacency_refuses_nodes_outside_the_graph():
    with pytest.raises(ValueError, match=r"nodes must be in \[0, 3\), got 0 to 3"):
        normalized_adjacency(torch.tensor([0]), torch.tensor([3]), 3)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_propagate_is_the_mean_of_the_layers_with_its_gradient(graph, layers):
    dense = graph[2].to_dense()
    block = torch.randn(11, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    power, total = block, block
    for _ in range(layers):
        power = dense @ power
        total = total + power
    expected = total / (layers + 1)
    out = propagate(block, graph[2], layers)
    torch.testing.assert_close(out, expected)
    weights = torch.randn(11, 5, generator=torch.Generator().manual_seed(2))
    ours, plain = (
        torch.autograd.grad((each * weights).sum(), block)[0] for each in (out, expected)
    )
    torch.testing.assert_close(ours, plain)


def test_lightgcn_is_as_wide_as_its_widest_row_and_equals_the_padded_table(graph):
    dims = [3, 1, 0, 2, 1, 1, 3, 2, 1, 1, 2]
    table = VarEmbedding(11, 40, dims=dims)
    first, vectors = LightGCN(table, graph[2])()
    assert first.shape == vectors.shape == (11, 3)
    padded = table.to_dense()
    torch.testing.assert_close(first, padded[:, :3])
    torch.testing.assert_close(vectors, propagate(padded, graph[2], 3)[:, :3])
    assert not padded[:, 3:].any()


def test_lightgcn_trains_only_numbers_that_rows_have(graph):
    table = VarEmbedding(11, 4, dims=[1, 2, 4, 0, 1, 3, 1, 2, 2, 1, 1])
    model = LightGCN(table, graph[2])
    first, vectors = model()
    users, positives, negatives = torch.tensor([[0, 1], [6, 7], [8, 9]])
    bpr_loss(first, vectors, users, positives, negatives, 0.1).backward()
    assert table.weight.grad.shape == (18,)
    assert table.weight.grad.abs().max() > 0


def test_bpr_loss_counts_repeated_nodes_every_time():
    draw = torch.Generator().manual_seed(3)
    first, vectors = (torch.randn(5, 3, generator=draw) for _ in range(2))
    users, positives, negatives = torch.tensor([[0, 0, 1], [2, 2, 3], [4, 3, 4]])
    scores = (vectors[users] * (vectors[negatives] - vectors[positives])).sum(1)
    squares = sum(first[n].square().sum() for n in (*users, *positives, *negatives))
    expected = F.softplus(scores).mean() + 0.5 * squares / 3
    torch.testing.assert_close(bpr_loss(first, vectors, users, positives, negatives, 0.5), expected)

    wide = [block.double().requires_grad_() for block in (first, vectors)]
    assert torch.autograd.gradcheck(
        lambda *both: bpr_loss(*both, users, positives, negatives, 0.5), wide
    )


def test_lightgcn_refuses_matrices(graph):
    table = VarEmbedding(11, 4, dims=2, unify="linear")
    with pytest.raises(ValueError, match="the table must pad its rows"):
        LightGCN(table, graph[2])
