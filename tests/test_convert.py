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
