"""After a search: the best candidate is trained once more, for as long as was best, and tested."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from search.pairs import planted_pairs, prepare

from varemb.search import retraining
from varemb.search.base import Checkpoint
from varemb.search.fixed_sizes import FixedSizesConfig
from varemb.search.pairwise import PairwiseConfig, Quality, Trainer
from varemb.search.retraining import (
    Progress,
    dims_of,
    measure_levels,
    open_progress,
    plan_candidate,
)

WIDTH = 8
TRAINING = PairwiseConfig(batch_size=50, round_epochs=3, max_rounds=9)


@pytest.fixture(name="split", scope="module")
def make_split():
    return planted_pairs(users=20, items=16, bought=8)


def make_trainer(split, training=TRAINING):
    return Trainer.of_search(prepare(split, "mf", WIDTH), split, training, 0)


def test_the_best_candidate_is_tested_after_as_many_rounds_as_were_best(split, monkeypatch):
    """The second of two, whose best round was its fourth, on the pairs of both parts."""
    candidates = [
        plan_candidate(np.full(36, dim), split.num_users, WIDTH, is_cut=dim == 4) for dim in (2, 4)
    ]
    found = {
        id(candidate.make_table): (Quality(torch.full((20,), mean), torch.empty(0), {}, 0), rounds)
        for candidate, mean, rounds in zip(candidates, (0.1, 0.3), (2, 4), strict=True)
    }
    monkeypatch.setattr(
        retraining, "train_while_better",
        lambda trainer, make, *args, **options: (None, *found[id(make)]),
    )  # fmt: skip
    made = []

    def train_for(trainer, make_table, steps, generator, *args, **options):
        made.append((make_table, steps, int(trainer.counts[:20].sum())))
        return trainer.start(make_table, generator)

    monkeypatch.setattr(retraining, "train_for", train_for)
    result = measure_levels(
        {0.5: candidates}, split, prepare(split, "mf", WIDTH), make_trainer(split), TRAINING,
        WIDTH, 0, lambda quality: quality.mean, Progress(Checkpoint(None, {})), progress=False,
    )  # fmt: skip
    (level,) = result.levels
    pairs = len(split.train.users) + len(split.valid.users)
    assert made == [(candidates[1].make_table, -(-4 * 3 * pairs // 50), pairs)]
    assert set(dims_of(level)) == {4} and level.is_cut and level.params == 4 * 36
    assert [trial["rounds"] for trial in level.trials] == [2, 4]
    assert [trial["score"] for trial in level.trials] == pytest.approx([0.1, 0.3])


def test_a_checkpoint_of_another_training_is_refused(split, tmp_path):
    config = FixedSizesConfig(width=WIDTH)

    def opened(training, *, resume):
        trainer = make_trainer(split, training)
        return open_progress("es", config, trainer, split, tmp_path, resume=resume)

    kept, state = opened(TRAINING, resume=False)
    assert state is None
    kept.file.save({"done": {}})
    assert opened(TRAINING, resume=True)[1] == {"done": {}}
    with pytest.raises(ValueError, match=r"was written with training lr = 0.03, got 0.5"):
        opened(replace(TRAINING, lr=0.5), resume=True)
