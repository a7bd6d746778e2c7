"""Training on a segment and trials of sizes: what stops, what is kept, asked for and rewarded."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from varemb.search import SCALL, SCALLConfig
from varemb.search.actor_critic import SAC
from varemb.search.budget_table import make_table
from varemb.search.scall_search import SizeSearch
from varemb.search.scall_state import Situation
from varemb.search.segment_training import Quality, SegmentTask, TrainingConfig, train_table
from varemb.search.segments import Frame, Part

SMALL = SCALLConfig(
    memory=0.0001, width=5, hidden=4, groups=2, min_trials=2, max_trials=2, grown_std=0.0,
    init_std=0.1,
)  # fmt: skip


def part(*pairs):
    both = np.array(pairs, np.int64).reshape(-1, 2)
    return Part(both[:, 0], both[:, 1])


NODES = np.array([0, 1]), np.array([2, 3, 4])  # table rows of two users and three items
HAD = part((0, 0), (1, 1), (1, 2))
FRAME = Frame(
    fit=HAD, valid=part((1, 0)), test=part((0, 0), (0, 1), (1, 1)), known=HAD,
    user_counts=np.array([1, 2]), item_counts=np.array([1, 1, 1]), unknown=0,
)  # fmt: skip


class Scripted(SegmentTask):
    """Rounds write their number into the table; their losses and scores are given."""

    def __init__(self, losses, valid, test, **settings):
        config = TrainingConfig(**{"max_rounds": len(losses), "patience": 2, **settings})
        super().__init__(FRAME, NODES, 10, config)
        self.losses, self.scores, self.rates = losses, {"valid": valid, "test": test}, []

    def run_round(self, table, model, optimizer, sampler):
        self.rates.append(optimizer.param_groups[0]["lr"])
        with torch.no_grad():
            table.weight.fill_(len(self.rates))
        return self.losses[len(self.rates) - 1]

    def rank(self, model, part):
        score = self.scores[part][len(self.rates) - 1]
        return Quality(score, score, 1)

    def train(self):
        generator = torch.Generator().manual_seed(0)
        table = make_table(np.full(5, 2), 2, 10, 0.1, generator)
        trained = train_table(self, table, generator)
        return trained, set(table.weight.tolist())


@pytest.mark.parametrize(("early_stop", "rounds", "best"), [("valid", 4, 2), ("test", 5, 3)])
def test_the_part_that_is_asked_for_stops_and_the_best_round_is_kept(early_stop, rounds, best):
    valid, test = [0.2, 0.4, 0.3, 0.3, 0.5, 0.6], [0.1, 0.2, 0.9, 0.8, 0.7, 0.6]
    trained, weights = Scripted([1.0] * 6, valid, test, early_stop=early_stop).train()
    assert trained == (rounds, 0.1)  # the reference is of the test part whatever stops
    assert weights == {best}


def test_training_goes_on_while_the_loss_falls():
    losses = [1.0, 0.9, 0.8, 0.7, 0.68, 0.5]  # 0.68 is more than 0.95 of 0.7, all before are less
    scores = [0.4] + [0.1] * 5
    assert Scripted(losses, scores, scores).train() == ((5, 0.4), {1.0})


@pytest.mark.parametrize(
    ("lr", "rates"), [(0.1, [0.1, 0.05, 0.03, 0.03]), (0.02, [0.02, 0.02, 0.02, 0.02])]
)
def test_the_learning_rate_falls_to_its_floor(lr, rates):
    task = Scripted([1.0] * 4, [0.1] * 4, [0.1] * 4, lr=lr, lr_decay=0.5, lr_floor=0.03, patience=9)
    task.train()
    assert task.rates == pytest.approx(rates)


@pytest.mark.parametrize(
    ("candidates", "ndcg"), [("test_items", 1.0), ("all", 1 / math.log2(3))]
)  # item 2, which nobody is asked for in the test part, is above item 1
def test_users_are_asked_for_items_that_are_new_to_them(candidates, ndcg):
    task = SegmentTask(FRAME, NODES, 10, TrainingConfig(candidates=candidates))
    vectors = torch.tensor([[1.0], [1.0], [3.0], [1.0], [2.0]])
    asked = task.rank(lambda: (None, vectors), "test")
    assert asked == (1.0, pytest.approx(ndcg), 1)  # user 0 had item 0, user 1 had item 1
    assert task.rank(lambda: (None, vectors), "valid") == (1.0, 1.0, 1)


def test_items_of_the_validation_part_are_had_in_the_test_part():
    """They are above all others, and not in the way."""
    frame = dataclasses.replace(FRAME, valid=part((0, 1)), test=part((0, 2), (1, 1)))
    task = SegmentTask(frame, NODES, 10, TrainingConfig())
    vectors = torch.tensor([[1.0], [1.0], [3.0], [4.0], [2.0]])
    assert task.rank(lambda: (None, vectors), "test") == (1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("settings", "fitness", "rewards"),
    [
        ({"low": 1.0, "high": 2.0}, [0.6, 0.7], [2.0, 4.0]),
        ({"calibrations": 3}, [0.5, 4.5, 1.0, 1.0, 1.1], [5.0, 7.5]),  # 0.8 and 1.2 of twice 1.0
    ],
)
def test_rewards_of_trials_are_scaled_and_learnt(monkeypatch, settings, fitness, rewards):
    config = dataclasses.replace(SMALL, **settings, updates=4)
    situation = Situation(NODES, (FRAME.user_counts, FRAME.item_counts), 25, config)
    generator, left, updates = torch.Generator().manual_seed(0), iter(fitness), []
    monkeypatch.setattr("varemb.search.scall_search.run_trial", lambda *_: next(left))
    monkeypatch.setattr(SAC, "update", lambda agent: updates.append(len(agent.replay)))
    search = SizeSearch(config, generator)
    table = make_table(situation.uniform_dims(), config.width, 25, 0.1, generator)
    search.run(None, situation, table, 0.5, lambda: None)
    assert search.rewards == pytest.approx(rewards)
    assert search.agent.replay.state()["rewards"].flatten().tolist() == pytest.approx(rewards)
    assert search.last_reward == pytest.approx(fitness[-1] / 0.5)
    assert updates == [1] * 4 + [2] * 4


@pytest.mark.parametrize(("frequency", "counts"), [("segment", [4, 15]), ("all", [20, 15])])
def test_rows_are_ranked_by_the_segment_or_by_all_that_came(frequency, counts):
    method = SCALL(dataclasses.replace(SMALL, frequency=frequency))
    for item in (0, 1):  # 20 events each; 4 of the first segment come again in the second
        events = np.arange(20) % 5, np.full(20, item)
        method._frame = method._past.open_segment(*events, method.config, torch.Generator())
    users, items = method._situation().frequencies
    assert items.tolist() == counts and users.sum() == sum(counts)


def test_numbers_that_rows_grow_by_have_their_own_deviation():
    method = SCALL(SMALL)
    method._table = method._fit_table(np.full(3, 2), 25)
    table = method._fit_table(np.full(5, 5), 25).to_dense()
    assert table[:3, :2].all() and table[3:].all()
    assert not table[:3, 2:].any()
