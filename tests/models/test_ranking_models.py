"""MF, NCF, NGCF and LightGCN as recommenders: their meaning in plain PyTorch, packed and masked."""

import numpy as np
import pytest
import torch
from search.pairs import planted_pairs, prepare
from torch.nn import functional as F

from benchmarks.bench_ciess import DenseMasked
from varemb import VarEmbedding, optim
from varemb.bpr_sampler import BprSampler
from varemb.models.graph import NodeRows, multiply
from varemb.models.lightgcn import normalized_adjacency
from varemb.models.ngcf import NGCF, _Layer, mean_matrix
from varemb.models.recommender import RECOMMENDERS, TRAININGS, prepare_recommender
from varemb.ranking import item_lists, rank_metrics

WIDTH = 12


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs()


def make(split, name, table, *, pairs=None, width=WIDTH):
    users, items = map(torch.from_numpy, pairs or split.train)
    tables = iter([table(0.1), table(0.1)])  # before the seed: tables draw first numbers too
    torch.manual_seed(1)
    return prepare(split, name, width)(users, items)(lambda std: next(tables))


def draw_batch(split, size=50, seed=0):
    sampler = BprSampler(*split.train, split.num_users, split.num_items, seed)
    return [torch.from_numpy(rows) for rows in sampler.sample(size)]


def random_rows(split, seed=0, width=WIDTH):
    rows = split.num_users + split.num_items
    draw = np.random.default_rng(seed)
    dims = draw.integers(1, width - 2, rows)
    dense = torch.from_numpy(draw.normal(0, 0.3, (rows, width)).astype(np.float32))
    return dense, dims


def all_scores(model, num_users):
    users, items = model.ranking()
    rows = torch.arange(num_users)
    return users[rows] @ items.T if isinstance(users, torch.Tensor) else users(rows, items)


def plain_bpr(scores, users, positives, negatives):
    return F.softplus(scores[users, negatives] - scores[users, positives]).mean()


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_loss_agrees_with_the_scores_of_the_ranking(split, name):
    dense, dims = random_rows(split)
    model = make(split, name, lambda std: VarEmbedding.from_pretrained(dense, False, dims=dims))
    model.eval()
    batch = draw_batch(split)
    expected = plain_bpr(all_scores(model, split.num_users), *batch)
    torch.testing.assert_close(model.loss(*batch, 0.0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_packed_rows_learn_as_a_masked_table_does(split, name):
    """Same first numbers, 50 steps of Adam: the losses stay together."""
    dense, dims = random_rows(split)
    tables = (
        lambda std: VarEmbedding.from_pretrained(dense, False, dims=dims),
        lambda std: DenseMasked(dense, dims),
    )
    losses = []
    for table in tables:
        model = make(split, name, table)
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        torch.manual_seed(2)  # of dropout
        own = []
        for step in range(50):
            loss = model.loss(*draw_batch(split, 200, step), TRAININGS[name]["decay"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            own.append(loss.item())
        losses.append(torch.tensor(own))
    assert losses[0][-1] < losses[0][0]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [7, 200])  # fewer rows in the batch than in the tables, and more
def test_ncf_is_a_hidden_layer_beside_products(split, size):
    dense, dims = random_rows(split)
    other, _ = random_rows(split, 1)
    tables = iter([dense, other])
    model = make(split, "ncf", lambda std: DenseMasked(next(tables), dims))
    model.hidden.bias.data.normal_()
    model.output.bias.data.fill_(0.7)
    mask = torch.arange(WIDTH) < torch.from_numpy(dims)[:, None]
    hidden, products = dense * mask, other * mask
    users, items = split.num_users, split.num_items
    pairs = torch.cartesian_prod(torch.arange(users), torch.arange(items) + users)
    both = torch.cat([hidden[pairs[:, 0]], hidden[pairs[:, 1]]], 1)
    inner = F.relu(F.linear(both, model.hidden.weight, model.hidden.bias))
    outer = products[pairs[:, 0]] * products[pairs[:, 1]]
    expected = F.linear(torch.cat([inner, outer], 1), model.output.weight, model.output.bias).view(
        users, items
    )
    torch.testing.assert_close(all_scores(model, users), expected, rtol=1e-5, atol=1e-5)

    batch = draw_batch(split, size)
    rows = [batch[0], batch[1] + users, batch[2] + users]
    norms = sum(part[some].square().sum() for part in (hidden, products) for some in rows)
    loss = plain_bpr(expected, *batch) + 0.1 * norms / size
    torch.testing.assert_close(model.loss(*batch, 0.1), loss)


def test_ngcf_is_its_layers_one_behind_the_other(split):
    dense, _ = random_rows(split)
    model = make(split, "ngcf", lambda std: DenseMasked(dense, np.full(len(dense), WIDTH)))
    model.eval()
    users, items = map(torch.from_numpy, split.train)
    nodes = split.num_users + split.num_items
    graph = torch.eye(nodes)
    graph[users, items + split.num_users] = graph[items + split.num_users, users] = 1
    graph = graph / graph.sum(1, keepdim=True)
    leaf = dense.clone().requires_grad_()
    block, blocks = leaf, [leaf]
    for sums, products in zip(model.encoder.sums, model.encoder.products, strict=True):
        spread = graph @ block
        block = F.leaky_relu(sums(spread) + products(block * spread), 0.2)
        blocks.append(F.normalize(block))
    vectors = torch.cat(blocks, 1)
    torch.testing.assert_close(torch.cat(model.ranking()), vectors)
    batch = draw_batch(split)
    rows = [batch[0], batch[1] + split.num_users, batch[2] + split.num_users]
    norms = sum(vectors[some].square().sum() for some in rows)
    scores = vectors[: split.num_users] @ vectors[split.num_users :].T
    expected = plain_bpr(scores, *batch) + 0.1 * norms / len(batch[0])
    loss = model.loss(*batch, 0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(model.encoder.rows.table.weight.grad, leaf.grad)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_gradients_of_an_ngcf_layer(share):
    dense = (torch.rand(6, 6) < 0.5) * torch.randn(6, 6, dtype=torch.float64)
    matrices = dense.to_sparse_csr(), dense.T.contiguous().to_sparse_csr()
    block, *weights = (
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((6, 3), (4, 4), (4, 4), (4,))
    )

    def layer(*inputs):
        torch.manual_seed(0)  # of dropout
        return _Layer.apply(*inputs, *matrices, share)

    assert torch.autograd.gradcheck(layer, (block, *weights))
    if share:
        assert (layer(block, *weights)[0] == 0).any()


def test_a_node_without_edges_and_loop_has_an_ordinary_gradient():
    """Node dropout leaves out loops too; a vector of zeros has no direction, and 1e12 a slope."""
    model = NGCF(VarEmbedding(4, 4), mean_matrix(torch.tensor([0]), torch.tensor([1]), 4), 4)
    model.matrix = model.matrix._replace(values=torch.zeros_like(model.matrix.values))
    (model()[0] * torch.randn(4, 16)).sum().backward()
    for linear in (*model.sums, *model.products):
        assert 0 < linear.bias.grad.abs().max() < 1e3


def test_ngcf_drops_in_training_alone(split):
    dense, dims = random_rows(split)
    model = make(split, "ngcf", lambda std: DenseMasked(dense, dims))
    batch = draw_batch(split)
    assert model.loss(*batch, 0.0) != model.loss(*batch, 0.0)
    model.eval()
    assert model.loss(*batch, 0.0) == model.loss(*batch, 0.0)


def test_mean_matrix_mirrors_its_entries():
    matrix = mean_matrix(torch.tensor([0, 0, 1, 0]), torch.tensor([2, 3, 3, 2]), 4)
    rows = torch.arange(4).repeat_interleave(matrix.starts.diff())
    assert torch.equal(rows[matrix.mirrored], matrix.columns)
    assert torch.equal(matrix.columns[matrix.mirrored], rows)
    dense = torch.zeros(4, 4).index_put((rows, matrix.columns), matrix.values)
    torch.testing.assert_close(dense.sum(1), torch.ones(4))
    assert (dense > 0).sum() == 3 * 2 + 4
    with pytest.raises(ValueError, match=r"mean_matrix: nodes must be in \[0, 2\), got 0 to 2"):
        mean_matrix(torch.tensor([0]), torch.tensor([2]), 2)


def test_products_of_sparse_matrices():
    dense = (torch.rand(6, 5) < 0.4) * torch.randn(6, 5)
    block = torch.randn(5, 3)
    torch.testing.assert_close(multiply(dense.to_sparse_csr(), block), dense @ block)


def test_products_with_a_graph_without_edges_are_zero():
    none = torch.empty(0, dtype=torch.int64)
    graph = normalized_adjacency(none, none, 3)
    assert torch.equal(multiply(graph, torch.ones(3, 2)), torch.zeros(3, 2))


def test_node_rows_are_as_wide_as_the_widest_and_refuse_matrices():
    assert NodeRows(VarEmbedding(3, 9, dims=[2, 4, 0]), 9).width == 4
    assert NodeRows(VarEmbedding(3, 9, dims=0), 9)(torch.tensor([1])).tolist() == [[0.0]]
    with pytest.raises(ValueError, match="must pad its rows"):
        NodeRows(VarEmbedding(3, 9, dims=[2, 4, 1], unify="linear"), 9)


def test_an_unknown_recommender_is_named():
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="one of mf, ncf, ngcf, lightgcn, got 'svd'"):
        prepare_recommender("svd", none, none, 1, 1, 4)


@pytest.mark.parametrize("name", RECOMMENDERS)
def test_recommenders_find_planted_groups(name):
    split = planted_pairs(bought=8)
    rows = split.num_users + split.num_items

    def table(std):
        made = VarEmbedding(rows, WIDTH, dims=8)
        torch.nn.init.normal_(made.weight, std=0.1)
        return made

    torch.manual_seed(0)
    model = make(split, name, table)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for step in range(100):
        loss = model.loss(*draw_batch(split, 300, step), 1e-3)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    lists = [
        item_lists(*map(torch.from_numpy, part), split.num_users)
        for part in (split.train, split.valid)
    ]
    found = rank_metrics(*model.ranking(), *lists, [5]).means()
    assert found["recall@5"] > 0.4  # twice what chance gives, 5 of 26


@pytest.mark.parametrize("fused", [False, True])
def test_node_rows_are_trained_as_the_table_says(fused):
    tables = []
    for is_narrow in (False, True):
        table = VarEmbedding(4, 9, padding_idx=2, sparse=not fused, dims=[2, 4, 3, 1])
        with torch.no_grad():
            table.weight.copy_(torch.arange(10.0))
        sgd = optim.SGD([table.weight], lr=0.5, fused=fused)
        rows = NodeRows(table, 9) if is_narrow else table
        rows(torch.tensor([1, 2, 0, 1])).sum().backward()
        sgd.step()
        tables.append(table.to_dense()[:, :4])
    assert torch.equal(*tables)
    # Row 1 was read twice, row 2 is padding, row 3 was not read.
    assert tables[1].tolist() == [[-0.5, 0.5, 0, 0], [1, 2, 3, 4], [6, 7, 8, 0], [9, 0, 0, 0]]
