"""Plans under a sparsity: numbers and bytes allowed, ES, MR, the best plans of several levels."""

import numpy as np
import pytest
import torch

from varemb import VarEmbedding
from varemb.files import load_state, save_state
from varemb.memory import memory_report
from varemb.search.sparsity import (
    TopPlans,
    allowed_numbers,
    equal_dims,
    fit_dims,
    random_dims,
    to_dims,
    to_plan,
)


@pytest.mark.parametrize(("sparsity", "dim"), [(0.8, 25), (0.9, 12), (0.95, 6)])
def test_equal_dims_of_the_paper(sparsity, dim):
    assert equal_dims(700, allowed_numbers(700, 128, sparsity)).tolist() == [dim] * 700


def test_equal_dims_take_what_rounding_leaves_in_rows_of_the_seed():
    dims = equal_dims(500, 6_400, seed=0)
    assert dims.sum() == 6_400 and set(dims.tolist()) == {12, 13}
    first = dims[:250].sum() / dims.sum()
    assert 0.48 < first < 0.52  # neither users nor items have more
    assert not np.array_equal(dims, equal_dims(500, 6_400, seed=1))


def test_allowed_numbers_are_exact_where_floats_are_not():
    assert allowed_numbers(9746, 128, 0.9) == 124_748  # 1 - 0.9 < 0.1 in float64
    assert [allowed_numbers(10, 100, c) for c in (0.7, 0.9, 0.99)] == [300, 100, 10]


@pytest.mark.parametrize("sparsity", [0.8, 0.9, 0.95])
def test_allowed_numbers_in_bytes_count_the_index(sparsity):
    rows, width = 5000, 128
    numbers = allowed_numbers(rows, width, sparsity, "bytes")
    table = VarEmbedding(rows, width, dims=fit_dims(np.ones(rows, int), width, numbers))
    taken = memory_report(table).bytes
    limit = round((1 - sparsity) * rows * width * 4, 6)
    assert limit - 8 < taken["weights"] + taken["index"] <= limit


@pytest.mark.parametrize("sparsity", [0.0, 1.0, -0.5, 1.5, float("nan")])
def test_allowed_numbers_refuse_a_sparsity_outside_0_to_1(sparsity):
    with pytest.raises(ValueError, match="must be in"):
        allowed_numbers(10, 128, sparsity)


def test_allowed_numbers_refuse_a_sparsity_finer_than_one_number_a_row():
    assert allowed_numbers(100, 128, 0.9921) == 101
    with pytest.raises(ValueError, match=r"0\.995 leaves 64 numbers for 100 rows.*0\.9922 at most"):
        allowed_numbers(100, 128, 0.995)


@pytest.mark.parametrize(("sparsity", "most"), [(0.8, 50), (0.9, 25), (0.95, 12)])
def test_random_dims_meet_the_sparsity(sparsity, most):
    numbers = allowed_numbers(4000, 128, sparsity)
    dims = random_dims(4000, 128, sparsity, numbers, seed=1)
    assert dims.min() == 1 and dims.max() == most
    assert 0.97 * numbers < dims.sum() <= numbers
    assert np.array_equal(dims, random_dims(4000, 128, sparsity, numbers, seed=1))
    assert not np.array_equal(dims, random_dims(4000, 128, sparsity, numbers, seed=2))


def test_random_dims_are_trimmed_where_their_mean_is_above():
    dims = random_dims(50, 128, 0.9, 300, seed=0)  # they would take about 650
    assert dims.sum() == 300 and dims.min() >= 1


def test_fit_dims_sum_exactly_and_keep_their_order():
    draw = np.random.default_rng(0)
    dims = draw.integers(1, 129, 1000)
    for numbers in (1000, 12_345, 100_000):
        fitted = fit_dims(dims, 128, numbers)
        assert fitted.sum() == numbers and fitted.min() >= 1 and fitted.max() <= 128
        order = np.argsort(dims, kind="stable")
        assert (np.diff(fitted[order]) >= -1).all()


def test_to_plan_and_back():
    dims = np.array([3, 1, 2, 4, 4])
    plan = to_plan(dims, 2, 8)
    assert plan["user"].tolist() == [3, 1] and plan["item"].tolist() == [2, 4, 4]
    assert np.array_equal(to_dims(plan), dims)


def test_top_plans_of_several_sparsities(tmp_path):
    top = TopPlans({0.5: 40, 0.75: 20}, most=2)
    offers = [([8, 8], 0.9, 0.1), ([1, 3], 0.2, 0.3), ([2, 2], 0.6, 0.5), ([30, 2], 0.7, 0.4),
              ([30, 30], 1.0, 0.2), ([40, 40], 1.0, 0.6)]  # fmt: skip
    for dims, quality, reward in offers:
        top.offer(np.array(dims), quality, reward)
    save_state(tmp_path / "top", {"top": top.state()})
    again = TopPlans({0.5: 40, 0.75: 20}, most=2)
    again.load_state(load_state(tmp_path / "top")["top"])
    for each in (top, again):
        plans = each.plans(0.5, 64, fill=False)
        plans = [(dims.tolist(), cut) for dims, cut in plans]
        assert plans == [([8, 8], False), ([20, 20], True), ([30, 2], False), ([20, 20], True)]
        plans = [(dims.tolist(), cut) for dims, cut in each.plans(0.75, 64, fill=False)]
        assert plans == [([8, 8], False), ([10, 10], True), ([2, 2], False), ([19, 1], True)]
        filled = [dims.tolist() for dims, _ in each.plans(0.75, 64, fill=True)]
        assert filled == [[10, 10], [10, 10], [10, 10], [19, 1]]


def test_top_plans_take_what_is_allowed_and_not_a_number_more():
    top = TopPlans({0.5: 10}, most=3)
    top.offer(np.array([6, 4]), 0.1, 0.1)
    top.offer(np.array([6, 5]), 0.9, 0.9)
    plans = top.plans(0.5, 64, fill=False)
    assert [(dims.tolist(), cut) for dims, cut in plans] == [([6, 4], False), ([5, 5], True)]


def test_top_plans_cut_the_best_reward_where_none_is_within():
    top = TopPlans({0.9: 10}, most=1)
    for dims, quality, reward in ([60, 20], 1.0, 0.2), ([40, 10], 0.8, 0.7):
        top.offer(np.array(dims), quality, reward)
    ((dims, is_cut),) = top.plans(0.9, 64, fill=False)
    assert dims.tolist() == [8, 2] and is_cut


def test_dims_of_a_packed_table_are_those_asked_for():
    dims = random_dims(300, 255, 0.9, allowed_numbers(300, 255, 0.9), seed=0)
    assert torch.equal(VarEmbedding(300, 255, dims=dims).dims, torch.from_numpy(dims))
