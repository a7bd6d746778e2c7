"""CIESS: its laws, a planted problem, exact sparsity, the same result after a kill."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from search.pairs import killed_after, planted_pairs, prepare

from varemb.data.interactions import Pairs
from varemb.files import load_state
from varemb.search.ciess import CIESS, _Search
from varemb.search.dim_agents import CIESSConfig, Side
from varemb.search.pairwise import (
    PairwiseConfig,
    Quality,
    Trainer,
    packed_table,
    start_warm,
    tables_of,
)
from varemb.search.retraining import dims_of
from varemb.search.sparsity import fit_dims

WIDTH = 16
TRAINING = PairwiseConfig(
    batch_size=100, lr=0.05, lr_steps=10, epochs=1, round_epochs=2, patience=1, max_rounds=2
)
CONFIG = CIESSConfig(
    width=WIDTH, sparsities=(0.5, 0.8), episodes=2, iterations=2, hidden=8, batch_size=32,
    capacity=2, sigma=2.0, updates=2, plans=2,
)  # fmt: skip


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs(users=20, items=16, bought=8)


def plain(result):
    """What must be the same in two runs: everything but times."""
    levels = [
        {**asdict(replace(level, plan=None, trials=())), "dims": dims_of(level).tolist()}
        for level in result.levels
    ]
    trials = [
        {key: value for key, value in trial.items() if key != "seconds"}
        for level in result.levels for trial in level.trials
    ]  # fmt: skip
    history = [
        {key: value for key, value in record.items() if "seconds" not in key}
        for record in result.history
    ]
    return levels, trials, history


def search(split, config=CONFIG, name="mf", **options):
    return CIESS(config).fit(
        split, prepare(split, name, config.width), TRAINING, progress=False, **options
    )


@pytest.mark.parametrize("name", ["mf", "ncf", "ngcf", "lightgcn"])
@pytest.mark.parametrize("is_full", [True, False])
def test_plans_meet_every_sparsity_from_one_search(split, name, is_full):
    result = search(split, replace(CONFIG, is_full=is_full), name)
    rows = split.num_users + split.num_items
    tables = 2 if name == "ncf" else 1
    assert [level.sparsity for level in result.levels] == [0.5, 0.8]
    for level in result.levels:
        dims = dims_of(level)
        allowed = round((1 - level.sparsity) * rows * WIDTH - 0.5)
        assert level.params == tables * dims.sum() <= tables * allowed
        assert level.sparsity_reached >= level.sparsity
        assert level.params_full == tables * rows * WIDTH
        if is_full or level.is_cut:
            assert dims.sum() == allowed
        assert len(level.trials) == CONFIG.plans
        assert level.bytes["weights"] == 4 * level.params
        assert level.bytes["optimizer"] == 8 * level.params
        assert 0 <= level.metrics["recall@20"] <= 1
    assert len(result.history) == 4
    assert [(r["episode"], r["iteration"]) for r in result.history] == [
        (1, 1), (1, 2), (2, 1), (2, 2)
    ]  # fmt: skip


def test_the_third_and_fourth_plan_are_what_the_actors_choose(split):
    """Without noise and walk every plan is the actors': then all plans of a sparsity are alike."""
    quiet = replace(CONFIG, walk="none", noise="none", episodes=1, iterations=1, plans=3)
    few, several = (search(split, replace(quiet, plans=plans)).levels[0].trials for plans in (1, 4))
    assert (len(few), len(several)) == (1, 3)  # the search met one plan, the actors make two
    config = replace(CONFIG, plans=4)
    found = _Search(config, split, prepare(split, "mf", WIDTH), TRAINING)
    found.find_peaks()
    for _ in range(4):
        found.advance()
    for side in found.sides:  # else all rows are still in the middle
        side.agent.actor[-1].weight.data.mul_(300)
    plans = found.plans(0.5)
    dims = torch.cat([side.act() for side in found.sides]).numpy()
    assert len(plans) == 4
    allowed = found.top.allowed[0.5]
    assert plans[2][0].tolist() == fit_dims(dims, WIDTH, allowed).tolist()
    assert plans[2][1] == (dims.sum() > allowed)
    of_sides = [
        np.full_like(part, round(part.mean())) for part in np.split(dims, [split.num_users])
    ]
    expected = fit_dims(np.concatenate(of_sides), WIDTH, allowed)
    assert plans[3][0].tolist() == expected.tolist() != plans[2][0].tolist()


def test_first_dims_are_about_the_middle_and_a_table_of_them_is_all_that_is_trained(split):
    seen, graphs = [], []

    def spy(users, items):
        graphs.append(set(zip(users.tolist(), items.tolist(), strict=True)))
        make = prepare(split, "mf", WIDTH)(users, items)

        def make_and_count(table):
            model = make(table)
            seen.append(sum(t.weight.numel() for t in tables_of(model)))
            return model

        return make_and_count

    result = CIESS(CONFIG).fit(split, spy, TRAINING, progress=False)
    rows = split.num_users + split.num_items
    assert seen[0] == rows * WIDTH  # the full size, once
    assert seen[1 : 1 + len(result.history)] == [r["numbers"] for r in result.history]
    assert 0.3 < result.history[0]["sparsity"] < 0.65
    train, valid = (set(zip(*map(list, part), strict=True)) for part in split.parts()[:2])
    assert graphs == [train, train | valid]  # each built once; the last training learns both


@pytest.mark.parametrize("changes", [
    {"walk": "code"}, {"walk": "none"}, {"noise": "ou"}, {"noise": "uniform"},
    {"noise_scope": "shared"}, {"is_warm": True}, {"unit": "bytes"}, {"cost": 2.0},
])  # fmt: skip
def test_variants_differ_and_repeat_with_their_seed(split, changes):
    config = replace(CONFIG, sparsities=(0.5,), **changes)
    first, second = search(split, config), search(split, config)
    assert plain(first) == plain(second)
    assert plain(first) != plain(search(split, replace(CONFIG, sparsities=(0.5,))))


def test_another_seed_gives_another_search(split):
    first = search(split).history
    assert first != search(split, replace(CONFIG, seed=1)).history


def test_shared_noise_moves_all_rows_alike():
    generator = torch.Generator().manual_seed(0)
    config = CIESSConfig(width=64, noise_scope="shared", walk="none", hidden=8)
    side = Side(config, slice(0, 50), torch.arange(1, 51), generator)
    dims = side.agent.act(side._states()).round()
    side.choose()
    moved = side.dims - dims
    assert len(moved.unique()) == 1 and moved[0] != 0


def test_noise_of_an_episode_starts_anew():
    config = CIESSConfig(width=64, noise="ou", walk="none", hidden=8)
    side, chosen = Side(config, slice(0, 50), torch.arange(1, 51), torch.Generator()), []
    for _ in range(2):
        side.restart()
        side.generator.manual_seed(0)
        side.choose()
        chosen.append(side.dims)
    assert torch.equal(*chosen)


def test_agents_find_the_dims_that_a_planted_reward_wants():
    """Rows that are seen often have the best reward at 40 of 64 numbers, the others at 8."""
    generator = torch.Generator().manual_seed(0)
    config = CIESSConfig(
        width=64, hidden=32, batch_size=128, updates=20, gamma=0.5, clip=1.0, tau=0.05,
        capacity=30, iterations=5,
    )  # fmt: skip
    counts = torch.cat([torch.ones(100), torch.full((100,), 50)]).long()
    side = Side(config, slice(0, 200), counts, generator)
    best = torch.where(counts > 1, 40.0, 8.0)
    for _ in range(8):
        side.restart()
        for _ in range(config.iterations):
            side.choose()
            side.learn(torch.ones(200), 1 - ((side.dims - best) / 16).abs())
    found = side.agent.act(side._states())
    assert (found[:100] - 8).abs().mean() < 8
    assert (found[100:] - 40).abs().mean() < 8


def test_the_walk_takes_the_dim_that_the_critic_likes_best():
    generator = torch.Generator().manual_seed(0)
    side = Side(CIESSConfig(width=64, hidden=8), slice(0, 500), torch.arange(1, 501), generator)
    side.agent.values = lambda states, dims: -(dims - 5).abs().float()  # the smaller the better
    side.choose()
    with_walk = side.dims.double().mean()
    side.chances = None
    side.restart()
    side.choose()
    assert with_walk < side.dims.double().mean() - 2


def test_rows_without_quality_give_no_transitions(split):
    config = CIESSConfig(width=8, hidden=8)
    side = Side(config, slice(0, 3), torch.tensor([0, 2, 4]), torch.Generator())
    assert side.frequencies.tolist() == [0.0, 0.0, 1.0]  # never trained: like the rarest
    side.choose()
    side.learn(torch.tensor([torch.nan, 0.5, 1.0]), torch.tensor([torch.nan, 0.1, 0.2]))
    assert len(side.agent.transitions) == 2
    assert side.quality.tolist() == [0.0, 0.5, 1.0]


def test_transitions_hold_states_before_and_after(split):
    """Eq. 6: frequency scaled per side, dim scaled, quality; an episode starts at full width."""
    config = CIESSConfig(width=9, hidden=8, walk="none", noise="none")
    side = Side(config, slice(0, 3), torch.tensor([1, 3, 5]), torch.Generator().manual_seed(0))
    side.choose()
    assert side.dims.tolist() == [5, 5, 5]
    side.learn(torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.3, 0.5]))
    expected = [
        [0.0, 1.0, 1.0, 5.0, 0.1, 0.0, 0.5, 0.2],
        [0.5, 1.0, 1.0, 5.0, 0.3, 0.5, 0.5, 0.4],
        [1.0, 1.0, 1.0, 5.0, 0.5, 1.0, 0.5, 0.6],
    ]
    torch.testing.assert_close(side.agent.transitions.state()["rows"], torch.tensor(expected))


@pytest.mark.parametrize("cost", [0.0, 0.5, 2.0])
def test_the_reward_is_quality_less_the_cost_of_width(split, cost):
    quiet = replace(CONFIG, walk="none", noise="none", iterations=1, episodes=1)
    config = replace(quiet, width=15, cost=cost)
    (record,) = search(split, config).history
    rows = split.num_users + split.num_items
    assert record["numbers"] == 8 * rows  # without noise all rows have the middle
    assert 0 < record["quality"] <= 1
    assert record["reward"] == pytest.approx(record["quality"] - cost * (8 / 15) ** 2)


def test_plans_are_compared_by_quality_against_the_full_size(split, monkeypatch):
    """Eq. 7 and 16: half as good for users, twice for items; user 0 had none at full size."""

    def rank(self, model):
        is_full = sum(t.weight.numel() for t in tables_of(model)) == 36 * WIDTH
        users, items = torch.full((20,), 0.25), torch.full((16,), 0.5)
        if is_full:
            users, items = 2 * users * (torch.arange(20) > 0), items / 2
        return Quality(users, items, {}, 0)

    monkeypatch.setattr(Trainer, "rank", rank)
    config = replace(CONFIG, sparsities=(0.5,), episodes=1, iterations=1, plans=1)
    result = search(split, config)
    expected = pytest.approx((19 * 0.5 + 16 * 1) / 35)
    assert result.history[0]["quality"] == expected
    assert result.levels[0].trials[0]["score"] == expected


def test_plans_within_a_sparsity_are_kept_by_quality_and_those_above_by_reward(split):
    config = replace(CONFIG, sparsities=(0.1, 0.9))
    found = _Search(config, split, prepare(split, "mf", WIDTH), TRAINING)
    found.find_peaks()
    record = found.advance()
    assert [score for score, _ in found.top.within[0.1]] == [record["quality"]]
    assert [score for score, _ in found.top.above[0.9]] == [record["reward"]]
    assert record["reward"] < record["quality"]


def test_quality_of_users_and_items_by_hand():
    split = planted_pairs(users=6, items=8, bought=4)
    is_kept = split.valid.users != 2  # user 2 has nothing to be ranked for
    split = replace(split, valid=Pairs(*(rows[is_kept] for rows in split.valid)))
    trainer = Trainer(
        prepare(split, "mf", 8), split.train, split.valid, split.num_users, split.num_items,
        TRAINING, 0,
    )  # fmt: skip
    fitting = trainer.start(packed_table(np.full(14, 8), 8), torch.Generator().manual_seed(0))
    quality = trainer.rank(fitting.model)
    users, items = fitting.model.ranking()
    scores = users @ items.T
    scores[split.train.users, split.train.items] = -torch.inf
    order = scores.argsort(1, descending=True)
    assert quality.users[2].isnan() and quality.excluded == 1
    for user in (0, 1, 3, 4, 5):
        good = set(split.valid.items[split.valid.users == user].tolist())
        found = []
        for k in (5, 10, 20):
            top = order[user, :k].tolist()
            hits = [item in good for item in top]
            gain = sum(hit / np.log2(rank + 2) for rank, hit in enumerate(hits))
            ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, len(good))))
            found += [sum(hits) / len(good), gain / ideal]
        assert float(quality.users[user]) == pytest.approx(np.mean(found), abs=1e-6)
    for item in range(split.num_items):
        buyers = split.train.users[split.train.items == item]
        expected = quality.users[buyers].nanmean()
        torch.testing.assert_close(quality.items[item], expected, equal_nan=True)


def test_start_warm_keeps_what_both_have(split):
    rows = split.num_users + split.num_items
    trainer = Trainer(
        prepare(split, "ncf", 8), split.train, split.valid, split.num_users, split.num_items,
        TRAINING, 0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    wide = trainer.start(packed_table(np.full(rows, 6), 8), generator).model
    narrow = trainer.start(packed_table(np.arange(rows) % 8 + 1, 8), generator).model
    untouched = [table.to_dense().clone() for table in tables_of(narrow)]
    start_warm(narrow, wide)
    assert torch.equal(narrow.hidden.weight, wide.hidden.weight)
    for table, other, before in zip(tables_of(narrow), tables_of(wide), untouched, strict=True):
        for row in range(rows):
            kept = min(row % 8 + 1, 6)
            assert torch.equal(table.row(row)[:kept], other.row(row)[:kept])
            assert torch.equal(table.row(row)[kept:], before[row, kept : row % 8 + 1])


@pytest.mark.parametrize(("changes", "message"), [
    ({"sparsities": (0.5, 1.0)}, r"must be in \(0, 1\), got 1.0"),
    ({"sparsities": (0.99,)}, "leaves .* numbers for 36 rows"),
    ({"sparsities": (0.5, 0.5)}, "sparsities must be distinct"),
    ({"walk": "far"}, "walk must be paper, code, none, got 'far'"),
    ({"noise": "pink"}, "noise must be gaussian"),
    ({"noise_scope": "all"}, "noise_scope must be row, shared"),
    ({"unit": "bits"}, "unit must be numbers, bytes"),
    ({"episodes": 0}, "episodes must be at least 1"),
    ({"cost": -1.0}, "cost must be at least 0"),
    ({"width": 256}, "at most 255 wide"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused(split, changes, message):
    with pytest.raises(ValueError, match=message):
        search(split, replace(CONFIG, **changes))


def test_a_loss_that_is_not_finite_ends_the_search(split):
    with pytest.raises(FloatingPointError, match="training: the loss is"):
        CIESS(CONFIG).fit(
            split, prepare(split, "mf", WIDTH), replace(TRAINING, lr=1e30), progress=False
        )


@pytest.mark.parametrize("saves", [1, 2, 4, 6, 9])  # peaks, in the search, in the retraining
def test_resume_gives_the_result_of_an_uninterrupted_run(split, tmp_path, saves):
    config = replace(CONFIG, is_warm=saves == 4, noise="ou")
    whole = search(split, config)
    with killed_after(saves):
        search(split, config, checkpoint_dir=tmp_path)
    again = search(split, config, checkpoint_dir=tmp_path, resume=True)
    assert plain(again) == plain(whole)


def test_full_trainings_keep_no_transitions(split, tmp_path):
    search(split, checkpoint_dir=tmp_path)
    state = load_state(tmp_path / "ciess.safetensors")["state"]
    assert [len(side["agent"]["transitions"]["rows"]) for side in state["sides"]] == [0, 0]
    assert len(state["done"]) > 1


def test_a_foreign_checkpoint_is_refused(split, tmp_path):
    search(split, checkpoint_dir=tmp_path)
    with pytest.raises(ValueError, match=r"written with cost = 0.4, got 0.9"):
        search(split, replace(CONFIG, cost=0.9), checkpoint_dir=tmp_path, resume=True)


_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from search.test_ciess import CONFIG, planted_pairs, plain, search
import json
result = search(planted_pairs(users=20, items=16, bought=8), checkpoint_dir=Path(sys.argv[2]),
                resume=True)
Path(sys.argv[2], "result.json").write_text(json.dumps(plain(result)))
"""


def test_a_killed_process_resumes(split, tmp_path):
    """kill -9 once something is saved; the process that comes after ends as one would have."""
    command = [sys.executable, "-c", _RUN, str(Path(__file__).parents[1]), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(command, env=environment)
    checkpoint = tmp_path / "ciess.safetensors"
    deadline = time.monotonic() + 120
    while not checkpoint.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "result.json").exists()
    done = plain(search(split, checkpoint_dir=tmp_path, resume=True))
    assert done == plain(search(split))
