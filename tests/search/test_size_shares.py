"""Sizes from a distribution: its quantiles, and the budget they share."""

import numpy as np
import pytest

from varemb.budget import split_budget
from varemb.search.scall_config import SCALLConfig
from varemb.search.size_shares import DISTRIBUTIONS, dims_for_action, scale_action, shares


def test_memory_is_decimal_megabytes():
    assert SCALLConfig(memory=32).numbers == 8_000_000


def test_alpha_1_gives_twice_the_mean():
    line = shares("power_law", 1.0, 10_000)
    assert round(line[0] * 10_000 * 10, 2) == 20.0
    assert np.isclose(line.sum(), 1)


@pytest.mark.parametrize(
    ("distribution", "parameter"),
    [("power_law", 0.1), ("power_law", 1.0), ("power_law", 15.0), ("pareto", 30.0)],
)
def test_shares_are_the_mean_of_sorted_draws(distribution, parameter):
    draw, count = np.random.default_rng(0), 2000
    uniform = draw.random((100, count))
    values = uniform ** (1 / parameter)
    if distribution == "pareto":
        values = uniform ** (-1 / parameter)
    values = np.sort(values, 1)[:, ::-1]
    mean = (values / values.sum(1, keepdims=True)).mean(0)
    sizes = shares(distribution, parameter, count) * count * 10  # dims at a mean of 10
    difference = np.abs(mean * count * 10 - sizes)
    # 100 draws leave an error of 1 % in the sum of so steep a law; the top of a Pareto varies.
    assert (difference[1:] < np.maximum(0.3, 0.015 * sizes[1:])).all()
    assert difference[0] < max(1.0, 0.015 * sizes[0])


def test_truncated_normal_has_the_spread_of_its_sigma():
    line = shares("normal", 1e-5, 10_000)
    assert 1.35 < line[0] * 10_000 < 1.42
    assert np.isclose(np.std(line), 1e-5, rtol=0.01)
    assert (shares("normal", 1e-5, 1_000_000) >= 0).all()


def test_alpha_2_is_within_1_and_a_half():
    assert shares("power_law", 2.0, 1000)[0] * 1000 <= 1.5


@pytest.mark.parametrize("scale", ["linear", "log"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_scale_action_spans_the_range(distribution, scale):
    ends = [scale_action(distribution, action, scale=scale) for action in (0.0, 1.0)]
    np.testing.assert_allclose(ends, DISTRIBUTIONS[distribution][1], rtol=1e-12)


def test_dims_meet_the_budget_exactly_and_follow_the_frequencies():
    draw = np.random.default_rng(1)
    for case in range(60):
        users, items = (draw.zipf(1.3, draw.integers(1, 200)).clip(0, 50) - 1 for _ in range(2))
        rows, width = len(users) + len(items), int(draw.choice([1, 3, 16, 255]))
        budget = int(draw.integers(rows, 2 * rows * width + 1))
        action = tuple(draw.random(3)) if case else (0.0, 0.0, 0.0)
        distribution = list(DISTRIBUTIONS)[case % 3]
        sides = dims_for_action(action, (users, items), budget, width, distribution)
        assert sum(each.sum() for each in sides) == min(budget, rows * width)
        for dims, counts in zip(sides, (users, items), strict=True):
            assert dims.min() >= 1
            assert dims.max() <= width
            order = np.lexsort((np.arange(len(counts)), counts))
            assert (np.diff(dims[order]) >= 0).all()


def test_dims_refuse_a_budget_below_a_number_per_row():
    with pytest.raises(ValueError, match="at least a number for each of 3 rows, got 2"):
        dims_for_action((0.5, 0.5, 0.5), (np.ones(2), np.ones(1)), 2, 8, "power_law")


def test_split_budget_gives_both_sides_what_they_can_use():
    assert split_budget(0.9, (10, 10), 100, 8) == (80, 20)
    assert split_budget(1.0, (10, 10), 100, 64) == (90, 10)
    assert split_budget(0.0, (10, 10), 30, 8) == (10, 20)
    assert split_budget(0.5, (10, 10), 1000, 8) == (80, 80)
