import dataclasses
import math

import numpy as np
import pytest
import torch

from varemb.data import ClickData, planted_clicks
from varemb.models import WideDeep
from varemb.plan import SizePlan
from varemb.search import Mde, MdeConfig, TrainConfig
from varemb.search.mde import (
    make_plans,
    mde_dims,
    mde_plan,
    mde_table,
    popularity_bins,
)

TRAIN, VALID, _ = planted_clicks(
    2000, dims={"user": 4, "city": 2}, ids_per_field=20, scale=3.0
).split(0)
TRAINING = TrainConfig(batch_size=200, lr=5e-3, max_epochs=2)
CONFIG = MdeConfig(width=4, alphas=(0.0, 0.5), training=TRAINING)


def make_model(table):
    return WideDeep(TRAIN.cardinalities, 4, table, hidden=(8,))


def fit(config=CONFIG, **options):
    return Mde(config).fit(make_model, TRAIN, VALID, progress=False, **options)


def test_dims_by_hand():
    # lambda = 16 * 4^0.5 = 32; 32 / sqrt(4, 100, 5000) = 16, 3.2, 0.45
    assert mde_dims([4, 100, 5000], [1, 1, 1], 0.5, 16) == [16, 3, 1]
    # n / k = 8, 400: lambda = 16 * 8^0.25, 16 * (8 / 400)^0.25 = 6.017
    assert mde_dims([4, 100], [0.5, 0.25], 0.25, 16) == [16, 6]
    assert mde_dims([4, 100, 5000], [1, 1, 1], 0.5, 16, power_of_two=True) == [16, 4, 1]
    assert mde_dims([4, 100, 5000], [1, 1, 1], 0.0, 16) == [16, 16, 16]


def test_a_budget_by_hand():
    # lambda = 60 / (4 / 2 + 100 / 10) = 5; 5 / (2, 10) = 2.5, 0.5 -> at least 1
    assert mde_dims([4, 100], [1, 1], 0.5, 16, numbers=60) == [2, 1]
    # far above the limits 1 and D the budget is met up to rounding
    rows = [50, 400, 3000]
    dims = mde_dims(rows, [1, 1, 1], 0.2, 1000, numbers=200_000)
    assert sum(n * d for n, d in zip(rows, dims, strict=True)) == pytest.approx(200_000, rel=0.01)


def test_popularity_bins_share_the_lookups():
    counts = np.array([1, 8, 1, 2, 0, 4])
    bins = popularity_bins(counts, 2)
    assert [rows.tolist() for rows in bins] == [[1], [5, 3, 0, 2, 4]]
    assert [int(counts[rows].sum()) for rows in bins] == [8, 8]
    assert [rows.tolist() for rows in popularity_bins(np.zeros(2, np.int64), 3)] == [[0, 1]]


def test_popular_rows_of_a_field_are_wider():
    ids = torch.tensor([[0]] * 90 + [[1]] * 8 + [[2]] * 2)
    data = ClickData(ids, torch.zeros(100), ("item",), (4,))
    plan = mde_plan(data, 0.5, 8, 16, numbers=0, power_of_two=False)
    # blocks {0}: n / k = 1 / .9, {1, 2, 3}: 3 / .1; 16 * sqrt(1.111 / 30) = 3.08
    assert plan["item"].tolist() == [16, 3, 3, 3]
    assert mde_plan(data, 0.5, 1, 16, numbers=0, power_of_two=False)["item"].tolist() == [16] * 4


def test_the_projection_has_no_bias_and_full_rows_pass():
    plan = SizePlan.for_fields({"a": 3, "b": 2}, 4, {"a": 2, "b": 4})
    table = mde_table(plan, [3, 2], 1.0)
    ids = torch.tensor([[2, 1]])
    wide, full = table(ids)[0]
    assert torch.equal(full, table.row(4))
    torch.testing.assert_close(wide, table.row(2) @ table.unify.weight)
    assert [tuple(p.shape) for p in table.unify.parameters()] == [(2, 4)]
    table(ids).sum().backward()
    assert table.unify.weight.grad.abs().sum() > 0


def test_equal_plans_are_trained_once():
    plans = make_plans(CONFIG, TRAIN)
    assert len(plans) < 2 * 2 * 2
    assert all(plans.index(plan) == i for i, plan in enumerate(plans))
    by_field = dataclasses.replace(CONFIG, alphas=(0.0, 2.0), power_of_two="no", bins=(1,))
    dims = [[int(plan[name][0]) for name in plan] for plan in make_plans(by_field, TRAIN)]
    assert dims == [[4, 4, 4], [3, 3, 4]]  # rows 20, 20, 16: 4 * (16 / 20)^2 = 2.56


def test_the_best_setting_on_validation_is_kept(tmp_path):
    found = fit(checkpoint_dir=tmp_path)
    plans = make_plans(CONFIG, TRAIN)
    best = [max(record["valid"]["auc"] for record in found.history if record["trial"] == trial)
            for trial in range(len(plans))]  # fmt: skip
    assert found.score == max(best)
    assert found.plan == plans[best.index(max(best))]
    assert found.make_table().weight.numel() == found.plan.num_params
    again = fit(checkpoint_dir=tmp_path, resume=True)
    assert (again.plan, again.history) == (found.plan, found.history)


def test_a_single_setting_trains_nothing():
    found = fit(MdeConfig(width=4, alphas=(0.5,), bins=(1,), power_of_two="no"))
    assert math.isnan(found.score)
    assert found.history == []


@pytest.mark.parametrize(
    "change", [{"alphas": (-0.1,)}, {"alphas": ()}, {"bins": (0,)}, {"power_of_two": "maybe"}]
)
def test_settings_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match=f"MDE: {next(iter(change))}"):
        fit(dataclasses.replace(CONFIG, **change))
