"""Budgets are met to the last number that tables can store, by wide rows for frequent ids."""

import numpy as np
import pytest
import torch

from varemb.budget import fill_budget
from varemb.plan import SizePlan
from varemb.rows import granule_for
from varemb.storage import PackedStorage


def draw_counts(draw: np.random.Generator, rows: int) -> np.ndarray:
    kinds = [
        lambda: draw.integers(0, 5, rows),
        lambda: draw.zipf(1.3, rows),
        lambda: draw.random(rows) ** 8,
        lambda: np.full(rows, 7),
        lambda: draw.integers(0, 2, rows) * draw.pareto(0.3, rows),
        lambda: np.arange(rows) * 1e-12,
    ]
    return np.asarray(kinds[draw.integers(len(kinds))](), float)


@pytest.mark.parametrize("seed", range(200))
def test_by_frequency_meets_the_budget_and_follows_the_counts(seed):
    draw = np.random.default_rng(seed)
    rows = int(draw.integers(1, 400))
    width = int(draw.choice([1, 2, 7, 64, 256, 2048]))
    min_dim = int(draw.integers(0, min(width, 3) + 1))
    granule = granule_for(width)
    least = granule * rows if min_dim else 0
    budget = int(draw.integers(max(least, min_dim * rows), int(1.1 * width * rows) + 2))
    power = float(draw.choice([0.0, 0.3, 1.0, 2.5, 60.0]))
    counts = draw_counts(draw, rows)
    plan = SizePlan.by_frequency({"item": counts}, width, budget, power, min_dim)
    dims = plan["item"].astype(int)
    most = min(budget, width * rows)
    assert most - granule < plan.num_params <= most
    assert dims.min() >= min_dim
    assert dims.max() <= width
    # Sorted by count, earlier rows first among equals, dims never rise.
    order = np.lexsort((np.arange(rows), -counts))
    assert (np.diff(dims[order]) <= 0).all()
    again = SizePlan.by_frequency({"item": counts}, width, budget, power, min_dim)
    assert again == plan


@pytest.mark.parametrize("seed", range(40))
def test_by_frequency_over_tables_of_several_widths(seed):
    draw = np.random.default_rng(seed)
    counts = {name: draw_counts(draw, int(draw.integers(1, 60))) for name in "abc"}
    widths = {"a": 4, "b": 64, "c": 9}
    rows = sum(map(len, counts.values()))
    full = sum(len(counts[name]) * widths[name] for name in counts)
    budget = int(draw.integers(rows, full + 5))
    plan = SizePlan.by_frequency(counts, widths, budget)
    assert plan.num_params == min(budget, full)
    assert list(plan) == ["a", "b", "c"]
    for name in plan:
        assert plan[name].max() <= widths[name]
        order = np.lexsort((np.arange(len(counts[name])), -counts[name]))
        assert (np.diff(plan[name][order].astype(int)) <= 0).all()


def stored(plan: SizePlan) -> int:
    """Numbers that the tables take."""
    return sum(
        PackedStorage(torch.tensor(plan[name]), plan.widths[name]).weight.numel() for name in plan
    )


@pytest.mark.parametrize("width", [64, 255, 256, 257, 300, 511, 1024, 2047, 2048])
@pytest.mark.parametrize("budget", [32_000, 40_009, 120_001])
def test_a_budget_is_one_of_stored_numbers(width, budget):
    plan = SizePlan.by_frequency({"item": 1 / np.arange(1, 2001)}, width, budget)
    assert budget - granule_for(width) < stored(plan) <= budget
    assert plan.num_params == stored(plan)
    assert plan.nbytes() == 4 * stored(plan)
    assert plan.sparsity == 1 - stored(plan) / (2000 * width)
    assert f"{stored(plan):,}" in plan.summary()
    table = PackedStorage(torch.tensor(plan["item"]), width)
    assert table.dims.tolist() == plan["item"].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_a_budget_over_tables_of_several_granules(seed):
    draw = np.random.default_rng(seed)
    counts = {name: draw_counts(draw, int(draw.integers(1, 60))) for name in "abc"}
    widths = {"a": 4, "b": 2048, "c": 257}
    least = len(counts["a"]) + 16 * len(counts["b"]) + 2 * len(counts["c"])
    budget = int(draw.integers(least, 1000 * len(counts["b"]) + least))
    plan = SizePlan.by_frequency(counts, widths, budget)
    left = budget - stored(plan)
    assert left >= 0 and plan.num_params == stored(plan)
    for name in plan:
        if (plan[name] < widths[name]).any():
            assert left < granule_for(widths[name])
        order = np.lexsort((np.arange(len(counts[name])), -counts[name]))
        assert (np.diff(plan[name][order].astype(int)) <= 0).all()


def test_a_budget_below_what_wide_rows_store_is_refused():
    with pytest.raises(ValueError, match=r"at least 16 \* 3 rows = 48 \(min_dim 1, rounded up\)"):
        SizePlan.by_frequency({"a": [3, 2, 1]}, 2048, budget=47)
    plan = SizePlan.by_frequency({"a": [3, 2, 1]}, 2048, budget=47, min_dim=0)
    assert plan["a"].tolist() == [16, 16, 0]


def test_by_frequency_is_proportional_where_nothing_is_cut():
    plan = SizePlan.by_frequency({"item": [40, 30, 20, 10]}, 64, budget=100)
    assert plan["item"].tolist() == [40, 30, 20, 10]
    plan = SizePlan.by_frequency({"item": [16, 4, 1]}, 64, budget=14, power=0.5)
    assert plan["item"].tolist() == [8, 4, 2]


def test_by_frequency_like_a_stream_of_a_memory_budget():
    # 32 MB are 8,000,000 numbers; a Pareto popularity with mean dim 10.
    draw = np.random.default_rng(0)
    plan = SizePlan.by_frequency({"item": draw.pareto(1.0, 800_000)}, 255, budget=8_000_000)
    assert plan.num_params == 8_000_000
    assert plan.nbytes() == 32_000_000
    assert plan["item"].min() == 1
    assert plan["item"].max() == 255


def test_rows_never_seen_come_last_but_a_rich_budget_reaches_them():
    assert SizePlan.by_frequency({"a": [5, 0, 0]}, 4, budget=6)["a"].tolist() == [4, 1, 1]
    assert SizePlan.by_frequency({"a": [5, 0, 0]}, 4, budget=9)["a"].tolist() == [4, 3, 2]
    assert SizePlan.by_frequency({"a": [0, 0, 0]}, 4, budget=4)["a"].tolist() == [2, 1, 1]
    assert SizePlan.by_frequency({"a": [5, 1]}, 4, budget=4, min_dim=0)["a"].tolist() == [3, 1]
    assert SizePlan.by_frequency({"a": [5, 1]}, 4, budget=0, min_dim=0)["a"].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": 2}, r"budget must be at least 1 \* 3 rows = 3, got 2"),
        ({"budget": 10.5}, "budget must be a whole number, got 10.5"),
        ({"budget": 10, "min_dim": 9}, r"min_dim must be in 0\.\.8, got 9"),
        ({"budget": 10, "min_dim": -1}, "min_dim must be"),
        ({"budget": 10, "power": -1.0}, "power must be finite and >= 0, got -1.0"),
        ({"budget": 10, "power": float("nan")}, "power must be finite"),
    ],
)
def test_by_frequency_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        SizePlan.by_frequency({"item": [3, 2, 1]}, 8, **arguments)


@pytest.mark.parametrize(("bad", "shown"), [(-1, "-1.0"), (np.nan, "nan"), (np.inf, "inf")])
def test_by_frequency_refuses_bad_counts(bad, shown):
    with pytest.raises(ValueError, match=f"finite and >= 0, got {shown} at row 1"):
        SizePlan.by_frequency({"item": [1, bad]}, 8, budget=4)


def test_by_frequency_bears_huge_counts_and_powers():
    plan = SizePlan.by_frequency({"item": [1e18, 1e18, 9e17]}, 8, budget=6, power=60.0)
    assert plan["item"].tolist() == [3, 2, 1]


def test_fill_budget_checks_its_caps():
    with pytest.raises(ValueError, match=r"min_dim must be in 0\.\.2, got 3"):
        fill_budget(np.ones(2), np.array([2, 8]), 8, min_dim=3)
