"""LightGCN on one segment: rounds of steps until the validation part gets no better.

The graph, the negatives and the candidates are made once per segment, and every step propagates
once. A search trial is the first round alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from varemb.bpr_sampler import BprSampler
from varemb.budget import Ints
from varemb.models.lightgcn import LightGCN, bpr_loss, normalized_adjacency
from varemb.nn import VarEmbedding
from varemb.ranking import ItemLists, item_lists, rank_metrics
from varemb.search.budget_table import check_budget
from varemb.search.epochs import gradient_step
from varemb.search.segments import Frame, FrameConfig, Part
from varemb.search.settings import option
from varemb.search.training import set_lr

TOP = 20


@dataclass(frozen=True)
class TrainingConfig(FrameConfig):
    """Settings of the recommender, LightGCN (X. He et al., SIGIR 2020), as in SCALL's code."""

    layers: int = option(3, "K, layers of LightGCN")
    batch_size: int = option(10_000, "triples of a step")
    steps: int = option(200, "steps of a round, and of a trial of the search")
    max_rounds: int = option(50, "rounds of a segment, at most")
    patience: int = option(3, "rounds without a better validation before training may stop")
    stall: float = option(0.95, "loss over the last round's, above which it counts as stalled")
    lr: float = option(0.03, "learning rate of Adam in the first round")
    lr_decay: float = option(0.95, "its factor after every round")
    lr_floor: float = option(1e-3, "what the learning rate falls to, if it starts above")
    decay: float = option(1e-4, "L2 of the rows of a batch")
    init_std: float = option(0.01, "of the first numbers of a row")
    grown_std: float = option(0.01, "of the numbers that a row grows by")
    candidates: str = option("test_items", "ranked items: test_items of the segment, or all known")


class Quality(NamedTuple):
    """Ranking of one part: means over its users."""

    recall: float
    ndcg: float
    users: int  # with at least one item to find

    @property
    def fitness(self) -> float:
        """(Recall@20 + NDCG@20) / 2."""
        return (self.recall + self.ndcg) / 2


class Trained(NamedTuple):
    """How training on a segment went; the table has the weights of the best round."""

    rounds: int
    reference: float  # fitness on the test part after the first round


class Exam(NamedTuple):
    """Users of a part and the items that are ranked for them, by table row."""

    users: Tensor  # [T]
    items: Tensor  # [C]
    seen: ItemLists  # places in `items`
    wanted: ItemLists


class SegmentTask:
    """A frame made ready: graph, pairs to draw from, candidates.

    Args:
        frame: pairs by user and item numbers.
        nodes: table row of each user and of each item. [U], [V]
        budget: numbers that a table may hold, asserted in every step.
        config: settings.
    """

    def __init__(
        self, frame: Frame, nodes: tuple[Ints, Ints], budget: int, config: TrainingConfig
    ) -> None:
        self.frame, self.nodes, self.budget, self.config = frame, nodes, budget, config
        users, items = self._nodes_of(frame.known)
        self.adjacency = normalized_adjacency(users, items, sum(map(len, nodes)))
        self.fit, self.allowed = _drop_full_users(frame)
        self._exams = {
            "test": self._make_exam(frame.test, frame.known + frame.valid),
            "valid": self._make_exam(frame.valid, frame.known),
        }

    def _nodes_of(self, part: Part) -> tuple[Tensor, Tensor]:
        users, items = self.nodes
        return torch.from_numpy(users[part.users]), torch.from_numpy(items[part.items])

    def make_sampler(self, generator: torch.Generator) -> BprSampler:
        """Triples of the train part; negatives are its items that the user has never had."""
        return BprSampler(
            self.fit.users,
            self.fit.items,
            len(self.nodes[0]),
            len(self.nodes[1]),
            int(torch.randint(2**62, (), generator=generator)),
            seen=(self.frame.known.users, self.frame.known.items),
            allowed=self.allowed,
        )

    def run_round(
        self,
        table: VarEmbedding,
        model: LightGCN,
        optimizer: torch.optim.Optimizer,
        sampler: BprSampler,
    ) -> float:
        """`steps` steps; the mean loss.

        Raises:
            FloatingPointError: the loss is not finite.
        """
        losses = []
        for _ in range(self.config.steps):
            users, positives, negatives = sampler.sample(self.config.batch_size)
            first, vectors = model()
            loss = bpr_loss(
                first,
                vectors,
                torch.from_numpy(self.nodes[0][users]),
                torch.from_numpy(self.nodes[1][positives]),
                torch.from_numpy(self.nodes[1][negatives]),
                self.config.decay,
            )
            losses.append(gradient_step(loss, [optimizer]))
            check_budget(table, self.budget)
        return sum(losses) / len(losses)

    def _make_exam(self, part: Part, known: Part) -> Exam | None:
        """Who is asked for what, without items that a user has had before; None if nobody is."""
        of_all = self.config.candidates == "all"
        items = np.unique(known.items if of_all else part.items)  # [C]
        num_items = len(self.nodes[1])
        had = known.users * num_items + known.items
        part = part[~np.isin(part.users * num_items + part.items, had)]
        if not len(part):
            return None
        users = np.unique(part.users)  # [T]
        seen = known[np.isin(known.users, users) & np.isin(known.items, items)]
        had_lists, wanted_lists = (
            item_lists(
                torch.from_numpy(np.searchsorted(users, each.users)),
                torch.from_numpy(np.searchsorted(items, each.items)),
                len(users),
            )
            for each in (seen, part)
        )
        return Exam(
            torch.from_numpy(self.nodes[0][users]),
            torch.from_numpy(self.nodes[1][items]),
            had_lists,
            wanted_lists,
        )

    @torch.no_grad()
    def rank(self, model: LightGCN, part: str) -> Quality:
        """Recall@20 and NDCG@20 of "test" or "valid"; NaN when there is nothing to find."""
        exam = self._exams[part]
        if exam is None:
            return Quality(math.nan, math.nan, 0)
        _, vectors = model()
        found = rank_metrics(
            vectors[exam.users], vectors[exam.items], exam.seen, exam.wanted, [TOP]
        )
        means = found.means()
        return Quality(means[f"recall@{TOP}"], means[f"ndcg@{TOP}"], len(found.users))


def _drop_full_users(frame: Frame) -> tuple[Part, Ints]:
    """Pairs of users for whom there are negatives, and the items that may be negatives."""
    allowed = np.unique(frame.fit.items)
    known = frame.known[np.isin(frame.known.items, allowed)]
    num_items = int(allowed[-1]) + 1
    pairs = np.unique(known.users * num_items + known.items)
    had = np.bincount(pairs // num_items, minlength=len(frame.user_counts))
    return frame.fit[had[frame.fit.users] < len(allowed)], allowed


def make_adam(table: VarEmbedding, lr: float) -> torch.optim.Optimizer:
    """Adam on all numbers of a table; every row has a gradient in every step."""
    return torch.optim.Adam([table.weight], lr, fused=True)


def run_trial(task: SegmentTask, table: VarEmbedding, generator: torch.Generator) -> float:
    """Fitness on the test part after one round from the table's first numbers."""
    model = LightGCN(table, task.adjacency, task.config.layers)
    task.run_round(table, model, make_adam(table, task.config.lr), task.make_sampler(generator))
    return task.rank(model, "test").fitness


def train_table(task: SegmentTask, table: VarEmbedding, generator: torch.Generator) -> Trained:
    """Trains to convergence; the table keeps the numbers of its best round.

    Stops when `patience` rounds have brought no better validation and the loss stalls as well.
    """
    config = task.config
    model = LightGCN(table, task.adjacency, config.layers)
    optimizer, sampler = make_adam(table, config.lr), task.make_sampler(generator)
    best, best_weight, bad = -math.inf, table.weight.detach().clone(), 0
    reference, last, loss, round_ = math.nan, math.inf, math.inf, 0
    for round_ in range(1, config.max_rounds + 1):
        falling = config.lr * config.lr_decay ** (round_ - 1)
        set_lr(optimizer, max(falling, min(config.lr, config.lr_floor)))
        last, loss = loss, task.run_round(table, model, optimizer, sampler)
        if round_ == 1:
            reference = task.rank(model, "test").fitness
        score = task.rank(model, config.early_stop).fitness
        bad = 0 if score > best else bad + 1
        if score > best or math.isnan(score):  # nothing to judge by: the last round is taken
            best = max(best, score)
            best_weight.copy_(table.weight.detach())
        if bad >= config.patience and loss > config.stall * last:
            break
    optimizer.zero_grad()  # its gradient would be in the way when the rows move
    with torch.no_grad():
        table.weight.copy_(best_weight)
    return Trained(round_, reference)
