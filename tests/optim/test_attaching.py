"""Which optimizer a table has, from when to when, and what it trains meanwhile."""

import pytest
import torch
from torch import nn

from varemb import VarEmbedding, optim

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
    assert table.storage.fused is None
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
        assert second.storage.fused is None and not second.storage.states()
    optimizer.add_param_group({"params": [second.weight, third.weight], "lr": 0.5})
    assert all(trained_by(table, optimizer) for table in (first, second, third))
    numbers = [int(state["rounding"][0]) >> 32 for state in optimizer.state.values()]
    assert numbers == [0, 1, 2]
