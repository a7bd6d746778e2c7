"""Tables that are no VarEmbedding go through the same training and the same measures."""

import pytest
import torch
from torch import nn

from varemb.data import planted_clicks
from varemb.models import WideDeep
from varemb.search import StoredTable, TrainConfig, train_table
from varemb.search.training import make_adam, split_tables, train_step

ROWS = {"user": 20, "city": 20, "hour": 16}
STARTS = torch.tensor([0, 20, 40])
CONFIG = TrainConfig(batch_size=100, lr=5e-3, max_epochs=2)


class HalfTable(nn.Module):
    """Half a number per row and column: two rows share one, and a price of 0.5 per step."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(28, 4))

    @property
    def num_params(self):
        return self.weight.numel()

    def stored(self):
        return {"weight": self.weight}

    def num_bytes(self):
        return {"weights": self.weight.nbytes, "index": 3, "unify": 0}

    def penalty(self):
        return self.weight.square().sum() * 0 + 0.5

    def forward(self, ids):
        return self.weight[(ids + STARTS) // 2]


def make_parts():
    clicks = planted_clicks(1500, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0)
    return clicks.split(0)


def make_model(table):
    return WideDeep(tuple(ROWS.values()), 4, table, hidden=(8,))


def run():
    return train_table(make_model, HalfTable, *make_parts(), CONFIG, width=4, progress=False)


def test_train_table_measures_what_is_stored():
    result, measured = run()
    assert isinstance(HalfTable(), StoredTable)
    assert (measured["params"], measured["params_full"]) == (28 * 4, 56 * 4)
    numbers = 28 * 4 * 4
    assert measured["bytes"] == {
        "weights": numbers, "index": 3, "unify": 0, "optimizer": 2 * numbers,
    }  # fmt: skip
    assert measured["epochs"] == len(result.history) == 2
    assert measured["metrics"] == run()[1]["metrics"]  # new weights from the seed


def test_train_step_adds_the_penalty_of_a_table():
    torch.manual_seed(0)
    model, (train, *_) = make_model(HalfTable()), make_parts()
    model.eval()
    rows = torch.arange(50)
    loss = nn.functional.binary_cross_entropy_with_logits(
        model(train.ids[rows]), train.labels[rows]
    ).item()
    found = train_step(model, make_adam(model, 0.0, 0.0), train, rows)
    assert found == pytest.approx(loss + 0.5, rel=1e-6)


def test_weight_decay_acts_on_the_parameters_of_a_stored_table():
    model = make_model(HalfTable())
    tables, others = split_tables(model)
    assert any(parameter.shape == (28, 4) for parameter in tables)
    assert len(tables) + len(others) == len(list(model.parameters()))
