"""ESAPN for rankings: its rewards by hand, a planted problem, rows that only grow, and resuming."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from search.pairs import killed_after, planted_pairs, prepare
from torch.nn import functional as F

from varemb.data.interactions import Pairs
from varemb.search import RankingESAPN, RankingESAPNConfig
from varemb.search.esapn_ranking import _Search
from varemb.search.pairwise import PairwiseConfig, Quality, tables_of
from varemb.search.retraining import dims_of

SIZES = (2, 4, 8, 16)
TRAINING = PairwiseConfig(
    batch_size=100, lr=0.05, lr_steps=2, epochs=2, round_epochs=2, patience=1, max_rounds=2
)
CONFIG = RankingESAPNConfig(
    sizes=SIZES, stages=3, hidden=16, policy_lr=0.01, policy_batch=10, sparsities=(0.5, 0.8)
)


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs(users=20, items=16, bought=8)


def search(split, config=CONFIG, name="mf", **options):
    return RankingESAPN(config).fit(
        split, prepare(split, name, config.width), TRAINING, progress=False, **options
    )


def make_search(split, config=CONFIG, name="mf"):
    return _Search(config, split, prepare(split, name, config.width), TRAINING)


def plain(result):
    """What must be the same in two runs: everything but times."""
    levels = [
        (level.sparsity, dims_of(level).tolist(), level.metrics, level.valid, level.is_cut)
        for level in result.levels
    ]
    return levels, result.history


@pytest.mark.parametrize("name", ["mf", "ncf", "ngcf", "lightgcn"])
def test_the_plan_is_measured_at_the_sparsity_that_results(split, name):
    result = search(split, name=name)
    (level,) = result.levels
    dims, rows, tables = dims_of(level), 36, 2 if name == "ncf" else 1
    assert set(dims.tolist()) <= set(SIZES) and 2 * rows < dims.sum() < 16 * rows
    assert level.sparsity == 0 and not level.is_cut
    assert level.params == tables * dims.sum() and level.params_full == tables * rows * 16
    last = result.history[-1]
    assert level.sparsity_reached == pytest.approx(last["sparsity"])
    assert last["numbers"] == dims.sum()
    assert [last["mean_dim_user"], last["mean_dim_item"]] == [dims[:20].mean(), dims[20:].mean()]
    assert [record["epoch"] for record in result.history] == [0, 1, 2, 3]
    assert level.bytes["weights"] == 4 * level.params
    assert 0 <= level.metrics["recall@20"] <= 1


def test_a_fitted_plan_meets_every_sparsity(split):
    whole, result = search(split), search(split, replace(CONFIG, is_fitted=True))
    found = dims_of(whole.levels[0])
    assert result.history == whole.history  # the plan is the same
    for level in result.levels:
        numbers = int((1 - level.sparsity) * 36 * 16 + 1e-6)
        dims = dims_of(level)
        assert dims.sum() == level.params == numbers
        assert level.is_cut == (found.sum() > numbers)
        order = np.argsort(found, kind="stable")
        assert (np.diff(dims[order]) >= np.where(np.diff(found[order]) > 0, 0, -1)).all()
    assert [level.sparsity for level in result.levels] == [0.5, 0.8]


def test_rows_start_at_the_smallest_size_and_grow_one_at_a_time(split):
    search = make_search(split)
    sizes, counts = [search.sizes], []
    for _ in range(5):
        record = search.advance()
        search.history.append(record)
        sizes.append(search.sizes)
        counts.append(record["grown"])
        (table,) = tables_of(search.fitting.model)
        assert torch.equal(table.dims, search.dims[search.sizes])  # no wider table is kept
    assert (sizes[0] == 0).all() and (sizes[1] == 0).all() and counts[0] == [0, 0]
    steps = torch.stack(sizes).diff(dim=0)
    assert set(steps.flatten().tolist()) == {0, 1}
    assert counts == [[int(step[:20].sum()), int(step[20:].sum())] for step in steps]
    assert search.sizes.max() < len(SIZES)


def test_no_row_grows_before_a_reward_spoke_for_it(split):
    search = make_search(split, replace(CONFIG, policy_lr=0.0))
    for _ in range(3):
        search.history.append(search.advance())
    assert (search.sizes == 0).all()


def test_rows_that_cannot_grow_have_no_choice(split):
    search = make_search(split)
    for policy in search.policies:  # all want to grow
        policy.out.bias.data.copy_(torch.tensor([0.0, 50.0]))
    search.sizes = torch.full((36,), 3)
    search.sizes[5] = 1
    for _ in range(3):
        search.history.append(search.advance())
    assert (search.sizes == 3).all()
    single = RankingESAPN(replace(CONFIG, sizes=(8,), stages=1)).fit(
        split, prepare(split, "mf", 8), TRAINING, progress=False
    )
    assert set(dims_of(single.levels[0])) == {8}


def test_a_copy_is_trained_with_sampled_sizes_and_the_rest_goes_on_without_it(split):
    search = make_search(split)
    search.history.append(search.advance())
    model = search.fitting.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = []
    train = search._train

    def spy(sizes):
        trained.append(sizes.clone())
        assert search.fitting.model is model  # both trainings start from the same numbers
        fitting, quality = train(sizes)
        assert fitting.steps == search.fitting.steps + search.trainer.steps_of(2)
        return fitting, quality

    search._train = spy
    search.advance()
    trial, real = trained
    assert 0 < int((trial > 0).sum()) < 36  # a policy that knows nothing draws both
    assert torch.equal(real, search.sizes) and not torch.equal(trial, real)
    assert real.max() == 1  # at most one size, and not on top of what the copy drew
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_grown_rows_keep_the_numbers_that_they_had(split):
    search = make_search(split)
    search.history.append(search.advance())
    (table,) = tables_of(search.fitting.model)
    old = table.to_dense().clone()
    search.trainer.advance = lambda fitting, steps, generator: 0.0
    search.history.append(search.advance())
    (table,) = tables_of(search.fitting.model)
    new = table.to_dense()
    assert (search.sizes > 0).any()
    assert torch.equal(new[:, :2], old[:, :2])
    grown = search.sizes > 0
    assert (new[grown, 2:4] != 0).all() and (new[~grown, 2:] == 0).all()


def test_the_reward_is_the_mean_of_the_last_losses_less_the_copys(split):
    search = make_search(split, replace(CONFIG, past_losses=2))
    qualities = [
        Quality(torch.full((20,), value), torch.full((16,), value / 2), {}, 0)
        for value in (0.1, 0.2, 0.4, 0.3, 0.5)
    ]
    seen = []
    search.trainer.rank = lambda model: qualities.pop(0)
    search._ascend = lambda number, rows, grows, rewards: seen.append((number, rewards))
    for _ in range(3):  # the first training; a copy and the real one, twice
        search.history.append(search.advance())
    torch.testing.assert_close(seen[0][1], torch.full((20,), 0.2 - 0.1))
    torch.testing.assert_close(seen[1][1], torch.full((16,), 0.1 - 0.05))
    # The copies' 0.2 and 0.3 are not kept: the last two are 0.1 and 0.4.
    assert seen[2][0] == 0
    torch.testing.assert_close(seen[2][1], torch.full_like(seen[2][1], 0.3 - 0.25))
    assert len(search.losses) == 2
    torch.testing.assert_close(search.losses[:, 0], torch.tensor([0.6, 0.5]))


def test_the_ascent_raises_the_chance_of_what_was_better_than_the_mean(split):
    config = replace(CONFIG, policy_batch=100, policy_lr=1e-4)
    search, twin = make_search(split, config), make_search(split, config)
    side, grows = torch.arange(20), (torch.arange(20) % 2).long()
    rewards = torch.where(grows > 0, 5.2, 5.0)
    rewards[3] = torch.nan  # a row without quality teaches nothing
    rewards[4] = 100.0
    for each in (search, twin):
        each.trainer.counts = torch.arange(36)
        each.sizes[4] = 3  # it cannot grow, so that it had no choice
    mean = (9 * 5.2 + 9 * 5.0) / 18
    gains = torch.where(grows > 0, 5.2 - mean, 5.0 - mean)
    gains[3] = gains[4] = 0
    surprise = F.cross_entropy(twin._logits(0, side), grows, reduction="none")
    (gains * surprise).sum().backward()
    before = torch.softmax(twin._logits(0, side), 1)[:, 1].mean()
    search._ascend(0, side, grows, rewards)
    for mine, other in zip(
        search.policies[0].parameters(), twin.policies[0].parameters(), strict=True
    ):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in search.policies[1].parameters())
    assert torch.softmax(search._logits(0, side), 1)[:, 1].mean() > before


def test_a_policy_takes_a_step_for_each_batch_of_rows(split):
    search = make_search(split, replace(CONFIG, policy_batch=7))
    search._ascend(0, torch.arange(20), torch.arange(20) % 2, torch.rand(20))
    assert {int(state["step"]) for state in search.adam.state.values()} == {3}


def test_rows_above_the_most_frequent_are_the_same_to_a_policy(split):
    search = make_search(split, replace(CONFIG, most_frequent=3))
    search.trainer.counts = torch.arange(36)
    torch.nn.init.normal_(search.policies[0].out.weight)
    logits = search._logits(0, torch.arange(20))
    assert (logits[3:] == logits[3]).all() and (logits[:3] != logits[3]).all()


def test_policies_grow_the_rows_that_a_planted_quality_wants(split):
    """Wide rows serve users with many pairs; each size above the first harms the others."""
    busy = planted_pairs(users=80, items=30, bought=12)
    many = torch.arange(80) < 40
    kept = np.concatenate([
        np.flatnonzero(busy.train.users == user)[: None if many[user] else 2] for user in range(80)
    ])  # fmt: skip
    busy = replace(busy, train=Pairs(*(each[kept] for each in busy.train)))
    search = make_search(busy, replace(CONFIG, stages=12, hidden=32, policy_lr=0.003))
    train = search._train

    def planted(sizes):
        fitting, _ = train(sizes)
        signs = torch.where(many, 1.0, -1.0)
        users = 0.5 + signs * 0.1 * sizes[:80]
        return fitting, Quality(users, torch.full((30,), torch.nan), {}, 0)

    search._train = planted
    search.history.append(search.advance())
    for _ in range(60):  # what the policies want before any row has grown
        search._improve_policies()
    for _ in range(4):
        search.history.append(search.advance())
    sizes = search.sizes[:80].double()
    assert sizes[many].mean() > 2.5 and sizes[~many].mean() < 0.5


def test_a_search_repeats_with_its_seed(split):
    first = search(split)
    assert plain(search(split)) == plain(first)
    assert search(split, replace(CONFIG, seed=1)).history != first.history


@pytest.mark.parametrize("saves", [1, 2, 3, 4, 5])  # stages, then trainings of the plan
def test_resume_gives_the_result_of_an_uninterrupted_run(split, tmp_path, saves):
    whole = search(split, name="ngcf")
    with killed_after(saves):
        search(split, name="ngcf", checkpoint_dir=tmp_path)
    again = search(split, name="ngcf", checkpoint_dir=tmp_path, resume=True)
    assert plain(again) == plain(whole)


@pytest.mark.parametrize(("changes", "message"), [
    ({"sizes": (4, 2)}, r"ESAPN: sizes must be positive and increasing, got \(4, 2\)"),
    ({"sizes": ()}, "ESAPN: sizes must be positive and increasing"),
    ({"sizes": (2, 256)}, "ESAPN: sizes must be at most 255, got 256"),
    ({"stages": 0}, "ESAPN: stages must be at least 1, got 0"),
    ({"past_losses": 0}, "ESAPN: past_losses must be at least 1, got 0"),
    ({"policy_batch": 0}, "ESAPN: policy_batch must be at least 1, got 0"),
    ({"hidden": 0}, "ESAPN: hidden must be at least 1, got 0"),
    ({"most_frequent": 0}, "ESAPN: most_frequent must be at least 1, got 0"),
    ({"policy_lr": float("nan")}, "ESAPN: policy_lr must be finite and at least 0, got nan"),
    ({"is_fitted": True, "sparsities": (0.5, 0.5)}, "ESAPN: sparsities must be distinct"),
    ({"is_fitted": True, "sparsities": ()}, "ESAPN: sparsities must be distinct"),
    ({"is_fitted": True, "sparsities": (0.99,)}, "leaves .* numbers for 36 rows"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(split, changes, message):
    config = replace(CONFIG, **changes)
    with pytest.raises(ValueError, match=message):
        RankingESAPN(config).fit(split, prepare(split, "mf", 16), TRAINING, progress=False)


def test_a_checkpoint_of_other_settings_is_refused(split, tmp_path):
    search(split, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match="written with stages = 3, got 4"):
        search(split, replace(CONFIG, stages=4), checkpoint_dir=tmp_path, resume=True)


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in fields(RankingESAPNConfig))
