import math

import pytest

from varemb.data import planted_clicks
from varemb.search import Uniform, UniformConfig

CLICKS = planted_clicks(100, dims={"user": 4}, ids_per_field=20)  # 20 users, 16 hours


def fit(**options):
    return Uniform(UniformConfig(**options)).fit(lambda table: table, CLICKS, CLICKS)


def test_fde_has_the_full_width_without_matrices():
    found = fit(width=8)
    assert (found.plan.num_params, found.plan.sparsity, found.unify) == (36 * 8, 0.0, "pad")
    assert math.isnan(found.score)


@pytest.mark.parametrize("options", [{"numbers": 101}, {"share": 101.5 / (36 * 8)}])
def test_a_budget_is_met_exactly_by_two_neighbouring_dims(options):
    found = fit(width=8, **options)
    assert found.plan.num_params == 101  # 36 * 2 + 29
    assert {int(dim) for name in found.plan for dim in found.plan[name]} == {2, 3}
    assert found.unify == "pad"
    assert list(found.plan) == ["user", "hour"]


@pytest.mark.parametrize("numbers", [35, 36 * 8 + 1])
def test_budgets_that_no_dim_meets_are_refused(numbers):
    with pytest.raises(ValueError, match="take 36 to 288 numbers"):
        fit(width=8, numbers=numbers)


def test_wide_tables_keep_within_the_budget():
    assert set(fit(width=257).plan["user"].tolist()) == {257}  # FDE, though 258 are stored
    found = fit(width=1024, numbers=1001)  # in granules of 8
    assert found.plan.num_params == 1000
    assert {int(dim) for name in found.plan for dim in found.plan[name]} == {24, 32}
    with pytest.raises(ValueError, match="take 288 to 36,864 numbers"):
        fit(width=1024, numbers=287)
