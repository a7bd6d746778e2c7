"""convert: the modules a plan names, in place, or nothing."""

import pytest
import torch
from torch import nn

from varemb import SizePlan, VarEmbedding, VarEmbeddingBag, convert


class Towers(nn.Module):
    def __init__(self):
        super().__init__()
        self.user = nn.Embedding(6, 4, padding_idx=1, sparse=True)
        self.towers = nn.ModuleList([nn.EmbeddingBag(5, 8, mode="sum"), nn.Linear(8, 1)])


def test_convert_swaps_the_named_modules_alone():
    model = Towers().eval()
    user, bag = model.user.weight.detach().clone(), model.towers[0].weight.detach().clone()
    plan = SizePlan(
        {"user": [4, 0, 2, 1, 1, 1], "towers.0": [8, 1, 2, 3, 4]}, {"user": 4, "towers.0": 8}
    )
    assert convert(model, plan) is model
    assert isinstance(model.user, VarEmbedding) and isinstance(model.towers[0], VarEmbeddingBag)
    assert model.user.padding_idx == 1 and model.user.sparse and not model.user.training
    assert model.towers[0].mode == "sum" and model.towers[0].weight.requires_grad
    kept = torch.arange(4) < torch.tensor(plan["user"].tolist())[:, None]
    assert torch.equal(model.user.to_dense(), user * kept)
    kept = torch.arange(8) < torch.tensor(plan["towers.0"].tolist())[:, None]
    assert torch.equal(model.towers[0].to_dense(), bag * kept)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (SizePlan({"item": [1]}, 4), "names 'item', the model has no such module"),
        (SizePlan({"towers.1": [1] * 8}, 4), "'towers.1' must be nn.Embedding .* got Linear"),
        (SizePlan({"user": [1] * 7}, 4), r"\(7, 4\) rows and width for 'user', got \(6, 4\)"),
        (SizePlan({"user": [1] * 6}, 5), r"\(6, 5\) rows and width"),
    ],
)
def test_convert_refuses_a_plan_for_another_model_and_changes_nothing(plan, message):
    model = Towers()
    with pytest.raises(ValueError, match=message):
        convert(model, plan)
    assert isinstance(model.user, nn.Embedding)


def test_convert_replaces_a_module_under_all_its_names_by_one_table():
    model = Towers()
    model.item, model.inner = model.user, nn.ModuleDict({"again": model.user})
    kept = model.user.weight.detach().clone()
    plan = SizePlan({"user": [4] * 6, "inner.again": [4] * 6}, 4)
    convert(model, plan)
    assert model.user is model.item and model.user is model.inner["again"]
    assert torch.equal(model.user.to_dense(), kept)
    model = Towers()
    model.item = model.user
    convert(model, SizePlan({"item": [1] * 6}, 4))
    assert isinstance(model.user, VarEmbedding) and model.user is model.item


def test_convert_refuses_two_sizes_for_one_module():
    model = Towers()
    model.item = model.user
    plan = SizePlan({"user": [1] * 6, "item": [1] * 5 + [2]}, 4)
    with pytest.raises(ValueError, match=r"^convert: 'user' and 'item' are one module and must"):
        convert(model, plan)
    assert isinstance(model.user, nn.Embedding)


@pytest.mark.parametrize("head", [nn.Linear(4, 6, bias=False), nn.Embedding(6, 4)])
def test_convert_refuses_a_tied_weight(head):
    model = Towers()
    model.head = nn.Sequential(head)
    model.head[0].weight = model.user.weight
    with pytest.raises(ValueError, match=r"of 'user' must be its own, got one that is 'head\.0\.w"):
        convert(model, SizePlan({"user": [1] * 6}, 4))
    assert isinstance(model.user, nn.Embedding)


def test_convert_wants_a_plan():
    with pytest.raises(TypeError, match="the plan must be a SizePlan, got dict"):
        convert(nn.Sequential(nn.Embedding(3, 4)), {"0": [1] * 3})


def test_convert_replaces_nothing_when_a_later_module_is_refused():
    model = nn.Sequential(nn.Embedding(3, 4), nn.Embedding(3, 4, max_norm=1.0))
    with pytest.raises(ValueError, match=r"convert: '1': .*max_norm and norm_type are not"):
        convert(model, SizePlan({"0": [1] * 3, "1": [1] * 3}, 4))
    assert isinstance(model[0], nn.Embedding)


class Doubled(nn.Embedding):
    def forward(self, input):
        return 2 * super().forward(input)


class Named(nn.Embedding):
    pass


def test_convert_refuses_a_subclass_that_computes_something_else():
    model = nn.Sequential(Named(3, 4), Doubled(3, 4))
    with pytest.raises(
        ValueError, match=r"^convert: '1' must look rows up as nn\.Embedding does, got"
    ):
        convert(model, SizePlan({"0": [1] * 3, "1": [1] * 3}, 4))
    assert isinstance(model[0], Named)
    assert isinstance(convert(model, SizePlan({"0": [1] * 3}, 4))[0], VarEmbedding)
    bag = nn.Sequential(nn.EmbeddingBag(3, 4))
    bag[0].forward = lambda *args: 2 * nn.EmbeddingBag.forward(bag[0], *args)
    with pytest.raises(ValueError, match=r"as nn\.EmbeddingBag does"):
        convert(bag, SizePlan({"0": [1] * 3}, 4))
