"""Recommenders trained by triples (user, item bought, item not bought) and ranked for all users.

A recommender is made around tables of node rows, users first, then items, and knows two things:
the loss of a batch of triples, and what a full ranking needs. Each table has the same dims.

Triples are uniform over users and then over their items, as in CIESS's released code, since every
user counts alike in a ranking's means: on MovieLens 1M (LightGCN, dims 25 of 128, 20 passes) that
gives Recall@20 of 0.177 on the validation pairs, triples uniform over the pairs 0.165.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from varemb.bpr_sampler import BprSampler
from varemb.nn import VarEmbedding
from varemb.ranking import Score, item_lists, rank_metrics
from varemb.search.progress import Bar
from varemb.search.settings import check_positive, option
from varemb.search.training import seeded_from

Ints = npt.NDArray[np.int64]
Pairs = tuple[Ints, Ints]  # rows of users and of items. [L] each

MakeNodeTable = Callable[[float], nn.Module]  # deviation of the first numbers -> [L] to [L, D]
MakeRecommender = Callable[[MakeNodeTable], "Recommender"]
Prepare = Callable[[Tensor, Tensor], MakeRecommender]  # pairs to learn from; builds the graph once

LENGTHS = (5, 10, 20)  # k of eval(u), CIESS Eq. 8
PARTS = ("sampling", "forward", "backward", "update", "evaluation", "rl")
MAX_WIDTH = 255  # above it packed dims are rounded, and a sparsity would not hold


class PairData(Protocol):
    """Who bought what, in three parts."""

    @property
    def train(self) -> Pairs: ...

    @property
    def valid(self) -> Pairs: ...

    @property
    def test(self) -> Pairs: ...

    @property
    def num_users(self) -> int: ...

    @property
    def num_items(self) -> int: ...


class Recommender(Protocol):
    """A module that learns from triples and ranks."""

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, decay: float) -> Tensor:
        """Of a batch of rows [B]; items count from 0."""

    def ranking(self) -> tuple[Tensor | Score, Tensor]:
        """Users and items as `rank_metrics` takes them."""

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def modules(self) -> Iterator[nn.Module]: ...

    def train(self, mode: bool = True) -> Any: ...

    def eval(self) -> Any: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class PairwiseConfig:
    """How a recommender is trained; defaults are those of CIESS's code for LightGCN but for the
    epochs. `varemb.models.TRAININGS` has what it does otherwise for the others."""

    batch_size: int = option(10_000, "triples of a step")
    lr: float = option(0.03, "learning rate of Adam at the first step")
    lr_factor: float = option(0.9, "what the learning rate is multiplied with now and then")
    lr_steps: int = option(200, "steps between two such times")
    lr_floor: float = option(1e-3, "what the learning rate falls to, if it starts above")
    decay: float = option(1e-4, "weight of the L2 term")
    draw: str = option("users", "what triples are uniform over: users (CIESS's code) or pairs")
    epochs: int = option(5, "passes over the pairs of a training in a search")
    round_epochs: int = option(5, "passes between two evaluations of a full training")
    patience: int = option(2, "rounds in a row without a better one that end a full training")
    max_rounds: int = option(20, "rounds of a full training, at most")

    def __post_init__(self) -> None:
        check_positive(
            "training", self, "batch_size", "lr_steps", "epochs", "round_epochs", "patience",
            "max_rounds",
        )  # fmt: skip
        for name in ("lr", "lr_factor", "lr_floor", "decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"training: {name} must be finite and >= 0, got {value}")

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0: it falls to the floor, from above it."""
        falling = self.lr * self.lr_factor ** (step // self.lr_steps)
        return float(max(falling, min(self.lr, self.lr_floor)))


@dataclass(frozen=True)
class Quality:
    """How well a recommender ranks.

    Attributes:
        users: eval(u), the mean of Recall@k and NDCG@k over LENGTHS (Eq. 8); NaN without pairs to
            be ranked for. [U] float32
        items: mean eval(u) over the users who have the item in training (Eq. 9); NaN without. [V]
        means: recall and ndcg of each k, over users.
        excluded: users without pairs to be ranked for.
    """

    users: Tensor
    items: Tensor
    means: dict[str, float]
    excluded: int

    @property
    def mean(self) -> float:
        """Mean eval(u)."""
        return float(self.users.nanmean())

    def nodes(self) -> Tensor:
        """eval of all nodes. [N]"""
        return torch.cat([self.users, self.items])


@contextlib.contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Adds the time of the block to a part."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start


def packed_table(dims: Ints, width: int) -> MakeNodeTable:
    """Makes packed tables with these dims and normal first numbers.

    Raises:
        ValueError: a width above 255, where dims would be rounded up.
    """
    if width > MAX_WIDTH:
        raise ValueError(f"a recommender's table must be at most {MAX_WIDTH} wide, got {width}")

    def make(std: float) -> nn.Module:
        table = VarEmbedding(len(dims), width, dims=dims)
        nn.init.normal_(table.weight, std=std)
        return table

    return make


@dataclass
class Fitting:
    """A recommender on its way: the steps it has made, and its optimizer."""

    model: Recommender
    optimizer: torch.optim.Optimizer
    steps: int = 0

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]


class Trainer:
    """Trains recommenders on one set of pairs and ranks them for another.

    The graph, the sampler and the lists of seen items are made once, for all trainings.

    Args:
        prepare: makes recommenders over the pairs.
        pairs: to learn from.
        held: pairs to be ranked for; their users must have pairs to learn from.
        num_users, num_items: U and V.
        config: how each is trained.
        seed: of the triples.

    Attributes:
        seconds: spent by part, added up over all trainings.
    """

    def __init__(
        self,
        prepare: Prepare,
        pairs: Pairs,
        held: Pairs,
        num_users: int,
        num_items: int,
        config: PairwiseConfig,
        seed: int,
    ) -> None:
        self.config, self.num_users, self.num_items = config, num_users, num_items
        users, items = (torch.from_numpy(rows) for rows in pairs)
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.make = prepare(users, items)
        self.sampler = BprSampler(*pairs, num_users, num_items, seed, draw=config.draw)  # type: ignore[arg-type]
        self.seen = item_lists(users, items, num_users)
        self.held = item_lists(torch.from_numpy(held[0]), torch.from_numpy(held[1]), num_users)
        self.counts = torch.cat([  # pairs of each node, users first. [N]
            torch.bincount(users, minlength=num_users), torch.bincount(items, minlength=num_items)
        ])  # fmt: skip
        self._pairs = users, items

    @classmethod
    def of_search(
        cls, prepare: Prepare, data: PairData, config: PairwiseConfig, seed: int
    ) -> Trainer:
        """Of the training pairs, ranked for the validation pairs."""
        return cls(prepare, data.train, data.valid, data.num_users, data.num_items, config, seed)

    def rewind(self) -> None:
        """Draws the same triples again."""
        self.sampler.load_state({**self.sampler.state(), "drawn": 0})

    def start(self, make_table: MakeNodeTable, generator: torch.Generator) -> Fitting:
        """A fresh recommender."""
        with seeded_from(generator):
            model = self.make(make_table)
        return Fitting(model, torch.optim.Adam(model.parameters(), self.config.lr, fused=True))

    def steps_of(self, epochs: int) -> int:
        """Steps of so many passes over the pairs, at least 1."""
        return max(math.ceil(epochs * len(self._pairs[0]) / self.config.batch_size), 1)

    def advance(
        self,
        fitting: Fitting,
        steps: int,
        generator: torch.Generator,
        bar: Bar | None = None,
    ) -> float:
        """Trains for some steps, each of which moves the bar; returns their mean loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        with seeded_from(generator):
            return self.run(fitting, steps, bar)

    def run(self, fitting: Fitting, steps: int, bar: Bar | None = None) -> float:
        """As `advance`, with torch's own randomness as it is."""
        fitting.model.train()
        total = 0.0
        for _ in range(steps):
            total += self._step(fitting)
            if bar is not None:
                bar.update()
        return total / steps

    def _step(self, fitting: Fitting) -> float:
        config, seconds = self.config, self.seconds
        with timed(seconds, "sampling"):
            users, positives, negatives = map(
                torch.from_numpy, self.sampler.sample(config.batch_size)
            )
        with timed(seconds, "forward"):
            loss = fitting.model.loss(users, positives, negatives, config.decay)
        value = loss.item()
        if not math.isfinite(value):
            raise FloatingPointError(
                f"training: the loss is {value} at step {fitting.steps}; a smaller learning rate "
                "may help"
            )
        with timed(seconds, "backward"):
            fitting.optimizer.zero_grad()
            loss.backward()
        with timed(seconds, "update"):
            for group in fitting.optimizer.param_groups:
                if not group.get("is_fixed"):
                    group["lr"] = config.lr_at(fitting.steps)
            fitting.optimizer.step()
        fitting.steps += 1
        return value

    def rank(self, model: Recommender) -> Quality:
        """How well a recommender ranks the held pairs; no dropout."""
        with timed(self.seconds, "evaluation"):
            model.eval()
            users, items = model.ranking()
            found = rank_metrics(users, items, self.seen, self.held, LENGTHS)
            both = sum(found.recall[k] + found.ndcg[k] for k in LENGTHS) / (2 * len(LENGTHS))
            of_users = torch.full((self.num_users,), torch.nan)
            of_users[found.users] = torch.as_tensor(both, dtype=torch.float32)
            return Quality(of_users, self._of_items(of_users), found.means(), found.excluded)

    def _of_items(self, of_users: Tensor) -> Tensor:  # [U] -> [V]
        users, items = self._pairs
        is_ranked = ~of_users.isnan()[users]
        users, items = users[is_ranked], items[is_ranked]
        sums = torch.bincount(items, of_users[users].double(), minlength=self.num_items)
        return (sums / torch.bincount(items, minlength=self.num_items)).float()  # 0 / 0 is NaN


def tables_of(model: Recommender) -> list[VarEmbedding]:
    """The recommender's tables, in order."""
    return [module for module in model.modules() if isinstance(module, VarEmbedding)]


@torch.no_grad()
def start_warm(model: Recommender, earlier: Recommender) -> None:
    """Takes over the numbers of an earlier recommender, as many of each row as both have.

    Two full tables are in memory meanwhile.
    """
    for mine, other in zip(tables_of(model), tables_of(earlier), strict=True):
        is_kept = torch.arange(mine.embedding_dim) < torch.minimum(mine.dims, other.dims)[:, None]
        mine.storage.copy_dense_(torch.where(is_kept, other.to_dense(), mine.to_dense()))
    weights = {id(table.weight) for table in tables_of(model)}
    pairs = zip(model.parameters(), earlier.parameters(), strict=True)
    for parameter, value in pairs:
        if id(parameter) not in weights:
            parameter.copy_(value)
