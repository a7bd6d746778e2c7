"""Full trainings: the round that they end with, and the triples that they learn from."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from varemb.search.pairwise import Fitting, PairwiseConfig, Quality, Trainer
from varemb.search.rounds import train_while_better


class PlannedTrainer:
    """A model that is 1.0 after a round, 2.0 after two, and as good as planned."""

    def __init__(self, qualities, config):
        self.config, self.seconds, self.qualities = config, {}, iter(qualities)

    def start(self, make_table, generator):
        model = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(model.weight)
        return Fitting(model, None)

    def steps_of(self, epochs):
        return 5 * epochs

    @torch.no_grad()
    def advance(self, fitting, steps, generator, bar):
        fitting.model.weight += 1
        fitting.steps += steps

    def rank(self, model):
        return Quality(torch.tensor([next(self.qualities)]), torch.empty(0), {}, 0)


@pytest.mark.parametrize(("patience", "best", "made"), [(1, 2, 3), (2, 4, 6), (3, 4, 7)])
def test_a_training_ends_after_rounds_without_a_better_one_and_takes_the_best(patience, best, made):
    qualities = [0.1, 0.3, 0.2, 0.4, 0.4, 0.3, 0.2, 0.9]
    config = PairwiseConfig(round_epochs=2, patience=patience, max_rounds=20)
    fitting, quality, number = train_while_better(
        PlannedTrainer(qualities, config), None, torch.Generator()
    )
    assert number == best and quality.mean == pytest.approx(qualities[best - 1])
    assert fitting.model.weight.item() == best
    assert fitting.steps == 10 * made


def test_a_training_ends_after_its_last_round():
    config = PairwiseConfig(patience=3, max_rounds=2)
    trainer = PlannedTrainer([0.1, 0.2, 0.3], config)
    fitting, _, number = train_while_better(trainer, None, torch.Generator())
    assert number == fitting.model.weight.item() == 2


@pytest.mark.parametrize(("draw", "share"), [("pairs", 0.1), ("users", 0.5)])
def test_triples_are_drawn_as_the_settings_say(draw, share):
    """User 0 has nine pairs, user 1 one."""
    pairs = np.array([0] * 9 + [1]), np.arange(10)
    trainer = Trainer(
        lambda users, items: SimpleNamespace, pairs, pairs, 2, 11, PairwiseConfig(draw=draw), 0
    )
    users = trainer.sampler.sample(10_000)[0]
    assert users.mean() == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize(("changes", "message"), [
    ({"batch_size": 0}, "batch_size must be at least 1"),
    ({"lr": float("nan")}, "lr must be finite"),
])  # fmt: skip
def test_training_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        PairwiseConfig(**changes)


def test_the_learning_rate_falls_to_its_floor():
    config = PairwiseConfig(lr=0.03, lr_factor=0.9, lr_steps=200, lr_floor=1e-3)
    assert [config.lr_at(step) for step in (0, 199, 200)] == [0.03, 0.03, 0.027]
    assert config.lr_at(100_000) == 1e-3
    low = replace(config, lr=5e-4)  # never raised to the floor
    assert low.lr_at(0) == low.lr_at(1000) == 5e-4
