"""Which optimizer a table has, from when to when, and what it trains meanwhile."""

import copy

import pytest
import torch
from torch import nn

from varemb import VarEmbedding, VarEmbeddingBag, optim

ROWS = torch.arange(3)


def make_table(**options):
    return VarEmbedding(4, 6, dims=3, **options)


def trained_by(table, optimizer):
    """Whether a step of the optimizer moves the table."""
    before = table.to_dense()
    optimizer.zero_grad()
    table(ROWS).sum().backward()
    optimizer.step()
    return not torch.equal(table.to_dense(), before)


NOT_A_TABLE = nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda weight: [weight, NOT_A_TABLE], TypeError),
        (lambda weight: [{"params": [weight]}, {"params": [NOT_A_TABLE]}], TypeError),
        (lambda weight: [{"params": [weight]}, {"params": [weight]}], ValueError),
        (lambda weight: [{"params": [weight]}, {"params": [weight * 1]}], ValueError),
    ],
)
def test_a_constructor_that_raises_leaves_the_tables_as_they_were(make, error):
    table = make_table()
    with pytest.raises(error):
        optim.SGD(make(table.weight), lr=0.1)
    assert table.storage.attached is None
    assert trained_by(table, torch.optim.SGD(table.parameters(), lr=0.1))
    table.zero_grad()
    assert trained_by(table, optim.SGD(table.parameters(), lr=0.1))


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_group_that_is_refused_leaves_its_tables_and_the_optimizer_as_they_were():
    first, second, third = (make_table(dtype=torch.bfloat16) for _ in range(3))
    optimizer = optim.Adam(first.parameters(), lr=0.1, stochastic_rounding=True)
    for wrong in (nn.Parameter(torch.zeros(2)), make_table().weight, second.weight):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group({"params": [second.weight, wrong]})
        assert len(optimizer.param_groups) == len(optimizer.state) == 1
        assert second.storage.attached is None and not second.storage.states()
    optimizer.add_param_group({"params": [second.weight, third.weight], "lr": 0.5})
    assert all(trained_by(table, optimizer) for table in (first, second, third))
    numbers = [int(state["rounding"][0]) >> 32 for state in optimizer.state.values()]
    assert numbers == [0, 1, 2]


@pytest.mark.parametrize("cls", [VarEmbedding, VarEmbeddingBag])
@pytest.mark.parametrize("fused", [True, False])
def test_a_frozen_table_rests_until_it_is_unfrozen(cls, fused):
    table = cls.from_pretrained(torch.ones(4, 6), sparse=True)
    optimizer = optim.Adam(table.parameters(), lr=0.1, fused=fused)
    scale = torch.ones(6, requires_grad=True)

    def step():
        before = table.to_dense()
        optimizer.zero_grad()
        (table(ROWS[:, None]).view(3, 6) * scale).sum().backward()
        optimizer.step()
        return (before - table.to_dense())[0, 0].item()

    assert step() == 0 and not table.weight.requires_grad
    table.requires_grad_(True)
    assert step() == pytest.approx(0.1)  # Adam's first step, as no step has been counted
    assert (table.weight.grad is None) == fused
    table.requires_grad_(False)
    assert step() == 0
    assert not table(ROWS[:, None]).requires_grad
    assert not copy.deepcopy(table).weight.requires_grad


def test_matrices_of_a_frozen_table_are_trained():
    table = VarEmbedding(4, 6, dims=[1, 2, 3, 3], unify="linear")
    optimizer = optim.SGD([table.weight], lr=0.1)
    table.weight.requires_grad_(False)
    before = table.to_dense()
    table(ROWS).sum().backward()
    optimizer.step()
    assert torch.equal(table.to_dense(), before) and table.weight.grad is None
    assert all(matrix.grad.any() for matrix in table.unify_parameters())


def test_a_gradient_that_a_fused_optimizer_would_lose_is_refused():
    table = make_table()
    optimizer = optim.SGD(table.parameters(), lr=0.1)
    (table(ROWS).sum() + table.weight.square().sum()).backward()
    with pytest.raises(ValueError, match=r"SGD.step: .* no gradient, got one of parameter 0"):
        optimizer.step()
    optimizer.zero_grad()
    assert trained_by(table, optimizer)


def test_a_detached_optimizer_leaves_tables_that_another_one_trains():
    tables = [make_table() for _ in range(3)]
    weights = [table.weight for table in tables]
    tables[2].requires_grad_(False)
    optimizer = optim.Adam(weights, lr=0.1)
    assert trained_by(tables[0], optimizer)
    state = optimizer.state_dict()
    with pytest.raises(ValueError, match=r"call the optimizer's detach\(\) first"):
        optim.Adam(weights, lr=0.1)
    optimizer.detach()
    optimizer.detach()
    assert [weight.requires_grad for weight in weights] == [True, True, False]
    with pytest.raises(ValueError, match="it was detached from that of parameter 0"):
        optimizer.step()
    assert trained_by(tables[0], torch.optim.SGD([weights[0]], lr=0.1))
    other = optim.Adam(weights, lr=0.1)
    other.load_state_dict(state)
    optimizer.detach()  # no table has it: the other one's stay
    assert trained_by(tables[0], other) and trained_by(tables[1], other)


def test_a_table_gives_up_an_optimizer_that_nobody_holds():
    table = make_table()
    optim.SGD(table.parameters(), lr=0.1)
    before = table.to_dense()
    table(ROWS).sum().backward()
    assert table.weight.grad is None and not torch.equal(table.to_dense(), before)
    for _ in range(2):
        table.detach_optimizer()
    assert trained_by(table, torch.optim.SGD(table.parameters(), lr=0.1))


def test_an_optimizer_of_gradients_has_nothing_to_detach():
    table = make_table(sparse=True)
    optimizer = optim.SGD(table.parameters(), lr=0.1, fused=False)
    optimizer.detach()
    assert trained_by(table, optimizer)


@pytest.mark.parametrize("is_unscaled_before", [True, False])
def test_a_scaler_of_gradients_is_refused_by_a_fused_optimizer(is_unscaled_before):
    table, scaler = make_table(), torch.amp.GradScaler("cpu")
    optimizer = optim.Adam(table.parameters(), lr=0.1)
    scaler.scale(table(ROWS).sum()).backward()
    if is_unscaled_before:
        scaler.unscale_(optimizer)
    with pytest.raises(ValueError, match=r"Adam.step: .* there must be no GradScaler"):
        scaler.step(optimizer)
    assert trained_by(table, optimizer)  # without one
    disabled = torch.amp.GradScaler("cpu", enabled=False)
    disabled.scale(table(ROWS).sum()).backward()
    disabled.step(optimizer)


def test_a_scaler_works_on_the_gradients_of_sparse_tables():
    table, scaler = make_table(sparse=True), torch.amp.GradScaler("cpu", init_scale=8.0)
    optimizer = optim.SGD(table.parameters(), lr=0.5, fused=False)
    before = table.to_dense()
    scaler.scale(table(ROWS).sum()).backward()
    scaler.step(optimizer)
    assert torch.allclose((before - table.to_dense())[:3, :3], torch.tensor(0.5))
