"""Hyperparameters reach the tables, whichever way a group is written, and only good ones do."""

import copy

import pytest
import torch

from varemb import VarEmbedding, optim


def make(**options):
    table = VarEmbedding(4, 6, dims=3)
    return table, optim.Adam([{"params": [table.weight], **options}], lr=1.0)


def hyper(table):
    """lr, weight_decay, eps, beta1, beta2 as lookups have them."""
    return table.storage.fused.hyper[:5].tolist()


def set_lr(group):
    group["lr"] = 0.5


def join(group):
    group |= {"lr": 0.5}


@pytest.mark.parametrize(
    "change",
    [
        set_lr,
        join,
        lambda group: group.update(lr=0.5),
        lambda group: group.update({"lr": 0.5}),
        lambda group: group.update([("lr", 0.3), ("lr", 0.5)]),
        lambda group: group.update(lr=torch.tensor(0.5)),
    ],
)
def test_every_way_to_write_a_group_changes_the_next_backward(change):
    table, optimizer = make()
    group = optimizer.param_groups[0]
    before = table.to_dense()
    change(group)
    assert group["lr"] == hyper(table)[0] == 0.5
    table(torch.tensor([1])).sum().backward()
    assert (before - table.to_dense())[1, :3].tolist() == pytest.approx([0.5] * 3)


def test_betas_and_the_values_of_a_new_group_reach_the_tables():
    table, optimizer = make(lr=torch.tensor(0.25), betas=[0.5, 0.75], weight_decay=2)
    assert hyper(table) == [0.25, 2, 1e-8, 0.5, 0.75]
    group = optimizer.param_groups[0]
    assert group.setdefault("lr", 3.0) == 0.25 and group.setdefault("note", "a") == "a"
    group.update(betas=(0.1, 0.2), eps=0)
    assert hyper(table) == [0.25, 2, 0, 0.1, 0.2]
    assert group["betas"] == (0.1, 0.2) and isinstance(group["lr"], float)


def test_a_scheduler_changes_a_rate_that_was_given_as_a_tensor():
    table, optimizer = make(lr=torch.tensor(0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    optimizer.step()
    scheduler.step()
    assert hyper(table)[0] == 0.25


@pytest.mark.parametrize(
    "remove",
    [
        lambda group: group.pop("lr"),
        lambda group: group.__delitem__("betas"),
        lambda group: group.clear(),
        lambda group: group.popitem(),
    ],
)
def test_hyperparameters_cannot_be_removed(remove):
    group = make()[1].param_groups[0]
    expected = dict(group)
    with pytest.raises(ValueError, match=r"group: \w+ must stay, tables are trained with it"):
        remove(group)
    assert dict(group) == expected
    group["note"] = 1
    assert group.pop("note") == 1 and group.pop("note", 2) == 2 and "note" not in group


def test_copies_of_a_group_are_plain():
    table, optimizer = make()
    for copied in (copy.copy(optimizer.param_groups[0]), copy.deepcopy(optimizer.param_groups)[0]):
        copied["lr"] = 0.5
        assert type(copied) is dict and hyper(table)[0] == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": -1}, "Adam: lr must not be negative, got -1"),
        ({"lr": float("nan")}, "Adam: lr must not be negative, got nan"),
        ({"betas": (2.0, 3.0)}, r"Adam: betas must be in \[0, 1\), .* got \(2.0, 3.0\)"),
        ({"betas": (0.9,)}, "Adam: betas must be .* two of them"),
        ({"eps": -1e-8}, "Adam: eps must not be negative"),
        ({"weight_decay": -1}, "Adam: weight_decay must not be negative"),
    ],
)
def test_a_group_out_of_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        make(**values)
    optimizer = make()[1]
    other = VarEmbedding(4, 6, dims=3)
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [other.weight], **values})
    assert other.storage.attached is None and len(optimizer.param_groups) == 1
