"""A model and its optimizer are copied together, and then trained apart and alike."""

import copy
import pickle

import pytest
import torch
from torch import nn

from varemb import VarEmbedding, optim

OPTIMIZERS = [optim.SGD, optim.Adagrad, optim.RowWiseAdagrad, optim.Adam]


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.arange(5)).square().sum().backward()
    optimizer.step()
    return model[0].to_dense()


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.deepcopy,
        lambda both: pickle.loads(pickle.dumps(both)),
        lambda both: copy.deepcopy(both[::-1])[::-1],  # the optimizer first
    ],
)
@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(
    ("of_table", "of_optimizer"),
    [
        ({}, {}),
        ({"sparse": True}, {"fused": False}),
        ({"resizable": True}, {}),
        ({"dtype": torch.bfloat16}, {"stochastic_rounding": True, "seed": 7}),
    ],
)
def test_a_model_and_its_optimizer_are_copied_together(duplicate, cls, of_table, of_optimizer):
    table = VarEmbedding(6, 4, dims=[1, 4, 2, 3, 0, 4], **of_table)
    model = nn.Sequential(table)
    groups = [{"params": [table.weight], "lr": 0.1, "note": "kept"}]
    optimizer = cls(groups, **of_optimizer)
    for _ in range(2):
        step(model, optimizer)
    twin, other = duplicate((model, optimizer))
    assert other.param_groups[0]["params"][0] is twin[0].weight is not table.weight
    assert other.param_groups[0]["note"] == "kept" and type(other) is cls
    before = table.to_dense()
    moved = step(twin, other)
    assert torch.equal(table.to_dense(), before) and not torch.equal(moved, before)
    assert torch.equal(step(model, optimizer), moved)
    other.param_groups[0]["lr"] = 0.2
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert not torch.equal(step(twin, other), step(model, optimizer))


def test_a_frozen_table_stays_frozen_in_a_copy():
    table = VarEmbedding.from_pretrained(torch.ones(5, 4))
    model = nn.Sequential(table)
    twin, other = copy.deepcopy((model, optim.SGD(table.parameters(), lr=0.1)))
    assert not twin[0].weight.requires_grad
    twin.requires_grad_(True)
    assert (step(twin, other) < 1).all() and (table.to_dense() == 1).all()


def test_copies_that_cannot_train_are_refused():
    table = VarEmbedding(5, 4)
    optimizer = optim.Adam(table.parameters())
    with pytest.raises(ValueError, match="the table of parameter 0 must have no other optimizer"):
        copy.copy(optimizer)
    optimizer.detach()
    with pytest.raises(ValueError, match=r"Adam.copy: .* it was detached from that of parameter"):
        copy.deepcopy((table, optimizer))
