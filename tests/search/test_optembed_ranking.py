"""OptEmbed for rankings: its masks and evolution by hand, exact sparsity, the same after a kill."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from search.pairs import killed_after, planted_pairs, prepare

from varemb.nn import VarEmbedding
from varemb.search import RankingOptEmbed, RankingOptEmbedConfig
from varemb.search.node_masks import MaskedNodes, NodeMasks
from varemb.search.optembed_ranking import (
    _Search,
    cross_within,
    first_plans,
    mutate_within,
)
from varemb.search.pairwise import PairwiseConfig, Quality, tables_of
from varemb.search.retraining import dims_of

WIDTH = 16
TRAINING = PairwiseConfig(
    batch_size=100, lr=0.05, lr_steps=10, epochs=1, round_epochs=2, patience=1, max_rounds=2
)
CONFIG = RankingOptEmbedConfig(
    width=WIDTH, sparsities=(0.5, 0.8), epochs=2, population=6, parents=3, generations=3,
    mutation=0.5,
)  # fmt: skip


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs(users=20, items=16, bought=8)


def search(split, config=CONFIG, name="mf", training=TRAINING, **options):
    return RankingOptEmbed(config).fit(
        split, prepare(split, name, config.width), training, progress=False, **options
    )


def plain(result):
    """What must be the same in two runs: everything but times."""
    levels = [
        (level.sparsity, dims_of(level).tolist(), level.metrics, level.valid, level.params)
        for level in result.levels
    ]
    return levels, result.history


def make_masked(values, t):
    """One table of two users and an item, three numbers each."""
    masks = NodeMasks(num_users=2, num_nodes=3, width=3, t_init=0.0)
    table = MaskedNodes(VarEmbedding(3, 3), masks)
    with torch.no_grad():
        table.table.weight.copy_(torch.tensor(values).flatten())
        masks.t.copy_(torch.tensor(t))
    return table, masks


ROWS = [[0.1, -0.2, 0.3], [1.0, 1.0, -1.0], [0.6, 0.3, 0.3]]  # means 0.2, 1 and 0.4


def test_small_rows_are_dropped_and_rows_are_cut():
    table, masks = make_masked(ROWS, [0.3, 0.3])
    nodes = torch.arange(3)
    torch.testing.assert_close(table(nodes), torch.tensor([[0.0] * 3, *ROWS[1:]]))
    assert masks.kept_rows().tolist() == [False, True, True]
    masks.dims = torch.tensor([3, 2, 1])
    expected = torch.tensor([[0.6, 0.0, 0.0], [1.0, 1.0, 0.0], [0.6, 0.0, 0.0]])
    torch.testing.assert_close(table(torch.tensor([2, 1, 2])), expected)


def test_thresholds_and_rows_get_the_surrogates_gradient():
    table, masks = make_masked(ROWS, [0.3, 0.3])
    (table(torch.tensor([0, 2])) * torch.tensor([2.0, 1.0, 1.0])).sum().backward()
    # x = mean |e| - t = -0.1 and 0.1: slope 1.6; the gradient of the mask is <e, (2, 1, 1)>.
    torch.testing.assert_close(masks.t.grad, torch.tensor([-1.6 * 0.3, -1.6 * 1.8]))
    dropped = 1.6 * 0.3 / 3 * torch.tensor([1.0, -1.0, 1.0])
    kept = torch.tensor([2.0, 1.0, 1.0]) + 1.6 * 1.8 / 3
    torch.testing.assert_close(table.table.weight.grad, torch.cat([dropped, torch.zeros(3), kept]))


def test_tables_of_one_recommender_share_their_mask():
    masks = NodeMasks(num_users=1, num_nodes=2, width=2, t_init=0.5)
    first, second = (MaskedNodes(VarEmbedding(2, 2), masks) for _ in range(2))
    with torch.no_grad():
        first.table.weight.copy_(torch.tensor([0.1, 0.1, 0.1, 0.1]))
        second.table.weight.copy_(torch.tensor([1.0, 1.2, 0.3, 0.3]))
    assert masks.kept_rows().tolist() == [True, False]  # means 0.6 and 0.2
    torch.testing.assert_close(first(torch.tensor([0, 1])), torch.tensor([[0.1, 0.1], [0.0, 0.0]]))


@pytest.mark.parametrize("name", ["mf", "ncf"])
def test_every_step_cuts_each_node_to_a_new_prefix_and_judging_to_its_sides_dim(split, name):
    search = make_search(split, CONFIG, name)
    seen = []
    advance, rank = search.trainer.advance, search.trainer.rank

    def spy(fitting, steps, generator):
        assert steps == 1
        seen.append(search.masks.dims.clone())
        return advance(fitting, steps, generator)

    search.trainer.advance = spy
    for _ in range(20):
        search.history.append(search._train())
    drawn = torch.stack(seen)  # [steps, N]
    assert len(drawn) == 20 * search.trainer.steps_of(1)
    assert set(drawn.flatten().tolist()) == set(range(1, WIDTH + 1))
    assert (drawn[1:] != drawn[:-1]).float().mean() > 0.85  # of nodes, from step to step
    assert (drawn[:, 1:] != drawn[:, :-1]).float().mean() > 0.85  # from node to node
    judged = []

    def spy_rank(model):
        judged.append(search.masks.dims.clone())
        return rank(model)

    search.trainer.rank = spy_rank
    search._judge((3, 7))
    assert judged[0].tolist() == [3] * split.num_users + [7] * split.num_items
    assert (search.masks.dims == WIDTH).all()


def make_search(split, config, name="mf"):
    return _Search(config, split, prepare(split, name, WIDTH), TRAINING)


def test_thresholds_descend_on_both_terms_and_only_they_do_by_t_lr(split):
    """alpha sum exp(-t) alone lifts t by t_lr alpha exp(-t) a step where no row is near it."""
    far = replace(CONFIG, t_init=-5.0, alpha=0.01, t_lr=0.1)
    search = make_search(split, far)
    thresholds = search._train()["thresholds"]
    t = -5.0
    for _ in range(search.trainer.steps_of(1)):
        t += 0.1 * 0.01 * float(np.exp(-t))
    assert thresholds == pytest.approx([t, t], rel=1e-5)
    near = replace(CONFIG, alpha=0.0, t_lr=0.1)  # only the surrogate's gradient is left
    search = make_search(split, near)
    assert search.trainer.steps_of(1) == 1
    thresholds = search._train()["thresholds"]
    assert thresholds == pytest.approx((-0.1 * search.masks.t.grad).tolist())
    assert (search.masks.t.grad != 0).all()


def test_a_larger_alpha_drops_more_rows(split):
    kept = [
        make_search(split, replace(CONFIG, alpha=alpha, t_lr=0.05))._train()["kept_rows"]
        for alpha in (0.0, 5.0)
    ]
    assert kept[0] == [20, 16] and sum(kept[1]) < 30


def test_first_plans_are_uniform_within_the_numbers():
    torch.manual_seed(0)
    plans = first_plans(torch.tensor([10, 5]), 4, 35, 6000)
    within = {(u, v) for u in range(1, 5) for v in range(1, 5) if 10 * u + 5 * v <= 35}
    assert len(within) == 8 and set(plans) == within
    counts = [plans.count(pair) for pair in within]
    assert min(counts) > 650 and max(counts) < 850


def test_mutants_and_crossings_stay_within_the_numbers_and_leave_their_parents():
    kept, parents = torch.tensor([10, 5]), [[3, 1], [1, 4]]
    torch.manual_seed(0)
    mutants = {mutate_within(parents, kept, 35, 4, 0.5) for _ in range(300)}
    crossed = {cross_within(parents, kept, 35) for _ in range(100)}
    assert mutants == set(first_plans(kept, 4, 35, 1000))
    assert crossed == {(3, 1), (1, 4), (1, 1)}  # (3, 4) would take 50
    assert parents == [[3, 1], [1, 4]]
    unchanged = [mutate_within(parents, kept, 35, 4, 0.0) for _ in range(20)]
    assert set(unchanged) == {(3, 1), (1, 4)}


def test_evolution_finds_the_best_dims_within_each_sparsity(split):
    """Quality wants 12 for users and 5 for items; at 0.8 their numbers do not suffice."""
    search = make_search(split, replace(CONFIG, population=20, parents=8, generations=30))
    search.history = [{}] * CONFIG.epochs
    search.masks.t.data.fill_(-1.0)  # every row is kept

    def rank(model):
        user, item = int(search.masks.dims[0]), int(search.masks.dims[-1])
        score = torch.tensor([1 - abs(user - 12) / 16 - abs(item - 5) / 16])
        return Quality(score, score, {}, 0)

    search.trainer.rank = rank
    while len(search.history) < search.num_steps:
        search.history.append(search.advance())
    first, second = search.history[CONFIG.epochs + 29], search.history[-1]
    assert (first["sparsity"], second["sparsity"]) == (0.5, 0.8)
    numbers = 20 * 8 + 16 * 8, int(0.2 * 36 * WIDTH)
    best = [
        max(
            1 - abs(u - 12) / 16 - abs(v - 5) / 16
            for u in range(1, 17) for v in range(1, 17) if 20 * u + 16 * v <= most
        )
        for most in numbers
    ]  # fmt: skip
    assert [first["quality"], second["quality"]] == pytest.approx(best, abs=1e-6)
    assert first["dims"] == [10, 5]
    for sparsity, most in zip((0.5, 0.8), numbers, strict=True):
        assert search.best_plan(sparsity).sum() <= most
    qualities = [record["quality"] for record in search.history[-30:]]
    assert qualities == sorted(qualities)


DROPPING = replace(CONFIG, alpha=1.0, t_lr=0.04, epochs=6)  # about half of the rows
T_LR = {"mf": 0.02, "ncf": 0.04, "ngcf": 0.04, "lightgcn": 0.04}


@pytest.mark.parametrize("name", T_LR)
def test_plans_meet_every_sparsity_and_have_a_dim_per_side(split, name):
    config = replace(DROPPING, t_lr=T_LR[name])
    result = search(split, config, name)
    kept = result.history[config.epochs - 1]["kept_rows"]
    assert 0 < kept[0] < 20 and 0 < kept[1] < 16
    rows, tables = 36, 2 if name == "ncf" else 1
    assert [level.sparsity for level in result.levels] == [0.5, 0.8]
    for level in result.levels:
        dims = dims_of(level)
        sides = dims[: split.num_users], dims[split.num_users :]
        assert [int((side > 0).sum()) for side in sides] == kept
        assert all(set(side.tolist()) <= {0, int(side.max())} for side in sides)
        assert dims.sum() <= int((1 - level.sparsity) * rows * WIDTH + 1e-6)
        assert level.params == tables * dims.sum() and level.params_full == tables * rows * WIDTH
        assert level.sparsity_reached >= level.sparsity and not level.is_cut
        assert level.bytes["weights"] == 4 * level.params
        assert 0 <= level.metrics["recall@20"] <= 1
    assert [int(side.max()) for side in sides] == result.history[-1]["dims"]  # of the last level
    assert [record["phase"] for record in result.history] == ["supernet"] * 6 + ["evolution"] * 6


def test_dropped_rows_leave_their_numbers_to_the_others(split):
    """What is left of a sparsity after the evolution is less than a number per kept row."""
    config = replace(DROPPING, t_lr=0.02, sparsities=(0.8,), generations=20, mutation=1.0)
    dims = dims_of(search(split, config).levels[0])
    kept = [side[side > 0] for side in (dims[: split.num_users], dims[split.num_users :])]
    assert sum(map(len, kept)) < 36
    assert 115 - dims.sum() < max(map(len, kept))  # floor(0.2 * 36 * 16) = 115


def test_the_plan_is_trained_from_new_weights_in_packed_tables(split):
    stored = []

    def spy(users, items):
        make = prepare(split, "mf", WIDTH)(users, items)

        def make_and_count(table):
            model = make(table)
            stored.append(sum(t.weight.numel() for t in tables_of(model)))
            return model

        return make_and_count

    result = RankingOptEmbed(CONFIG).fit(split, spy, TRAINING, progress=False)
    first, second = (level.params for level in result.levels)
    assert stored == [36 * WIDTH, first, first, second, second]  # supernet, then two trainings each


def test_a_search_repeats_with_its_seed(split):
    first = search(split)
    assert plain(search(split)) == plain(first)
    assert search(split, replace(CONFIG, seed=1)).history != first.history


@pytest.mark.parametrize("saves", [1, 2, 4, 6, 8, 10])  # supernet, evolutions, trainings
def test_resume_gives_the_result_of_an_uninterrupted_run(split, tmp_path, saves):
    training = replace(TRAINING, lr_steps=1)  # so that the number of steps matters too
    whole = search(split, name="ngcf", training=training)
    with killed_after(saves):
        search(split, name="ngcf", training=training, checkpoint_dir=tmp_path)
    again = search(split, name="ngcf", training=training, checkpoint_dir=tmp_path, resume=True)
    assert plain(again) == plain(whole)


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"mutation": 1.5}, ValueError, r"OptEmbed: mutation must be in \[0, 1\], got 1.5"),
    ({"parents": 0}, ValueError, "OptEmbed: parents must be at least 1, got 0"),
    ({"generations": 0}, ValueError, "OptEmbed: generations must be at least 1, got 0"),
    ({"population": 0}, ValueError, "OptEmbed: population must be at least 1, got 0"),
    ({"epochs": 0}, ValueError, "OptEmbed: epochs must be at least 1, got 0"),
    ({"alpha": -1.0}, ValueError, "OptEmbed: alpha must be at least 0, got -1.0"),
    ({"t_lr": float("nan")}, ValueError, "OptEmbed: t_lr must be finite and at least 0, got nan"),
    ({"sparsities": (0.5, 0.5)}, ValueError, r"OptEmbed: sparsities must be distinct"),
    ({"sparsities": ()}, ValueError, r"OptEmbed: sparsities must be distinct"),
    ({"sparsities": (1.0,)}, ValueError, r"must be in \(0, 1\), got 1.0"),
    ({"sparsities": (0.99,)}, ValueError, "leaves .* numbers for 36 rows"),
    ({"width": 256}, ValueError, "at most 255 wide, got 256"),
    ({"t_init": 100.0}, RuntimeError, "every user is below the threshold; lower alpha"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(split, changes, error, message):
    with pytest.raises(error, match=message):
        search(split, replace(CONFIG, **changes))


def test_a_checkpoint_of_other_settings_is_refused(split, tmp_path):
    search(split, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"written with alpha = .*, got 0.5"):
        search(split, replace(CONFIG, alpha=0.5), checkpoint_dir=tmp_path, resume=True)


def test_every_setting_explains_itself():
    assert all(field.metadata["help"] for field in fields(RankingOptEmbedConfig))
