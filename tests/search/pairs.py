"""Small purchases with a known structure, for tests of rankings."""

import contextlib
from functools import partial

import numpy as np
import pytest

from varemb.data.interactions import Interactions, Split
from varemb.models.recommender import prepare_recommender
from varemb.search.base import Checkpoint


def planted_pairs(users=40, items=30, groups=3, seed=0, bought=12) -> Split:
    """Users of a group buy the items of that group, and a few others."""
    draw = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        own = np.arange(user % groups, items, groups)
        weights = np.ones(items)
        weights[own] = 40
        rows.append(draw.choice(items, bought, replace=False, p=weights / weights.sum()))
    pairs = np.repeat(np.arange(users), bought), np.concatenate(rows)
    return Interactions.from_ids(*pairs, name="planted").split(seed)


def prepare(split: Split, name: str, width: int):
    """Makes recommenders of one kind over pairs of a split."""
    sizes = {"num_users": split.num_users, "num_items": split.num_items, "width": width}
    return partial(prepare_recommender, name, **sizes)


class KilledError(Exception):
    pass


@contextlib.contextmanager
def killed_after(saves):
    """A search that dies right after so many checkpoints, and must die."""
    save, count = Checkpoint.save, 0

    def save_and_die(self, state):
        nonlocal count
        save(self, state)
        count += 1
        if count == saves:
            raise KilledError

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(Checkpoint, "save", save_and_die)
        yield
