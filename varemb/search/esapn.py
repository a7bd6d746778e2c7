"""ESAPN: a policy lets the rows of a stream grow, one size at a time.

H. Liu et al., *Automated Embedding Size Search in Deep Recommender Systems*, SIGIR 2020.

Every row has one size of D = {d_1 < ... < d_n}, at first d_1. For each batch (Algorithm 1):

    2-6   V from the past, a ~ policy(s_V), s = (frequency, size); L: loss with the sizes of a;
          R = mean of the row's last T losses - L (Eq. 2); ascent on R log policy(a|s) (Eq. 6)
    7-9   next batch, a = argmax policy(s): chosen rows become e_(k+1) = W_k e_k + b_k (Eq. 1)
    10    predict and record, then learn the batch

DIFFERS: sizes are not changed in lines 4-6. A row that grew by Eq. 1 has the vector that it had
    before, so that only its group of the normalisation and its price change; those are used.
DIFFERS: rows that cannot grow have no choice: policies neither see them nor learn from them, and
    events without a row that can grow are left out of V.
DIFFERS: a row that occurs several times in a batch is decided on once, at its last occurrence, and
    grows by one size; all its events of the batch are read with that size.
DIFFERS: `norm="per_size"` normalises rows of each size by their own statistics, "shared" all rows
    of a side together, as the paper's text reads; then R does not depend on a at all. The published
    code takes statistics over all rows, in each of six tables that hold every row.
DIFFERS: the published code draws V from the batch before (`validation="last_batch"`), which the
    model has just learnt, so that R is positive whatever was done. The paper's "history" is ours.
DIFFERS: Adam moves the rows of the batch alone and a row that grew starts with new moments.

Ours, off by default: `price` takes price * (d_(k+1) - d_k) / d_n off the reward of growing;
`reward="delayed"` draws the actions of line 8 from the policy and rewards them with the row's loss
at its next event, which growing does change (less the mean over the batch, which cancels what all
rows gain by learning).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.nn.unify import ChainUnify
from varemb.ops import lookup
from varemb.optim import Adam
from varemb.search.settings import check_candidates, check_choice, check_positive, option
from varemb.search.stream_events import (
    Ids,
    StreamConfig,
    check_stream_config,
    losses,
    num_outputs,
)
from varemb.search.stream_history import SAMPLERS, History
from varemb.search.stream_learner import Learner, Learnt, Pair, descend, zero_gradients
from varemb.search.stream_method import StreamMethod
from varemb.search.stream_model import Inference, Policy, SideNorm, flat_parameter, raise_to_width
from varemb.search.stream_side import Column, Occurrences, Side
from varemb.search.training import seeded_from

POLICIES = ("learned", "always", "random")
NORMS = ("per_size", "shared")
REWARDS = ("immediate", "delayed")


@dataclass(frozen=True)
class ESAPNConfig(StreamConfig):
    """Settings of the search; the defaults are those of Section 3.2."""

    sizes: tuple[int, ...] = option((2, 4, 8, 16, 64, 128), "D: dims that a row may have")
    policy: str = option("learned", "learned, or a control: always grow, or at random")
    chance: float = option(0.5, "of growing, where the policy is random")
    norm: str = option("per_size", "rows that are normalised together: per_size or shared (a side)")
    validation: str = option("uniform", "V: uniform over the past, or last_batch")
    kept_events: int = option(100_000, "events of the past that V is drawn from")
    past_losses: int = option(5, "T: losses of a row that the reward compares with")
    policy_lr: float = option(0.0001, "alpha_P: learning rate of the policies")
    most_frequent: int = option(1000, "frequencies above it are the same to the policies")
    price: float = option(0.0, "taken off the reward of growing, per width grown")
    reward: str = option("immediate", "immediate (Eq. 2), or delayed to the row's next event")


def check_esapn(config: ESAPNConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_stream_config("ESAPN", config)
    check_candidates("ESAPN", config.sizes, "sizes")
    check_choice("ESAPN", config, "policy", POLICIES)
    check_choice("ESAPN", config, "norm", NORMS)
    check_choice("ESAPN", config, "validation", SAMPLERS)
    check_choice("ESAPN", config, "reward", REWARDS)
    check_positive("ESAPN", config, "kept_events", "past_losses", "most_frequent")
    if not 0 <= config.chance <= 1:
        raise ValueError(f"ESAPN: chance must be in [0, 1], got {config.chance}")
    if not config.price >= 0:
        raise ValueError(f"ESAPN: price must not be negative, got {config.price}")


class Decision(NamedTuple):
    """What a policy decided on rows of a side that can grow."""

    logits: Tensor  # [n, 2]
    sizes: Tensor  # before. [n]
    grows: Tensor  # 0 or 1. [n]


class ESAPNLearner(Learner):
    """The recommender and the two policies of one stream. Sizes are places in `config.sizes`.

    Args:
        config: the settings, checked.
    """

    chooser = "policies"

    def __init__(self, config: ESAPNConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        dims = torch.tensor(config.sizes)
        self.dims, self.largest = dims.numpy(), len(dims) - 1
        # What growing from each size costs; the largest cannot.
        self.costs = config.price * F.pad(dims.diff(), (0, 1)) / dims[-1]
        self.groups = len(dims) if config.norm == "per_size" else 1  # of a side
        with seeded_from(self.generator):
            self.sides = self._make_side(), self._make_side()
            self.norm = SideNorm(self.groups, config.sizes[-1])
            self.inference = Inference(config.sizes[-1], config.hidden, num_outputs(config))
            self.policies = nn.ModuleList(
                Policy(len(dims), 2, config.hidden, config.most_frequent) for _ in range(2)
            )
        tables = [side.table for side in self.sides]
        chains = [table.unify for table in tables if isinstance(table.unify, ChainUnify)]
        self.maps = [cast(nn.ModuleList, chain.maps[0]) for chain in chains]  # one field
        model = nn.ModuleList([self.norm, self.inference, *chains])
        self.modules = {"model": model, "policies": self.policies}
        self.optimizers = {
            "tables": Adam([table.weight for table in tables], config.table_lr),
            "model": torch.optim.Adam([flat_parameter(model)], config.lr, fused=True),
            "policies": torch.optim.Adam(
                [flat_parameter(self.policies)], config.policy_lr, fused=True
            ),
        }
        self.history = None
        if config.policy == "learned" and config.reward == "immediate":
            self.history = History(config.validation, config.kept_events, self.generator)

    def _make_side(self) -> Side:
        sizes = self.config.sizes
        columns: dict[str, Column] = {
            "size": (np.int8, ()),
            "losses": (np.float32, (self.config.past_losses,)),  # a ring: the last T losses
            "pushes": (np.int64, ()),
        }
        if self.config.reward == "delayed":
            columns["decided"] = (np.int64, (3,))  # frequency, size, action; frequency 0: none
        table = VarEmbedding(0, sizes[-1], resizable=True, unify="chain", sizes=sizes)
        return Side(table, sizes[0], columns)

    def learn(self, seen: Pair, labels: Tensor) -> Learnt:
        """One batch of Algorithm 1."""
        if self.history is not None and len(self.history):
            self._improve_policies(*self.history.draw(self.config.batch_size))
        decided = [self._decide(number, each) for number, each in enumerate(seen)]
        for side, (rows, decision) in zip(self.sides, decided, strict=True):
            self._grow(side, rows[decision.grows.numpy() > 0])
        both = torch.stack([each.rows for each in seen])  # [2, B]
        sizes = self._gather("size", both).long()
        logits = self._predict(both, sizes, sizes, track=True)
        lost = descend(logits, labels, [self.optimizers["tables"], self.optimizers["model"]])
        if self.config.policy == "learned" and self.config.reward == "delayed":
            self._reward_decisions(seen, decided, lost)
        for side, each in zip(self.sides, seen, strict=True):
            _push(side, each.distinct, lost.numpy()[each.last])
        if self.history is not None:
            self.history.add(both, labels)
        return Learnt(logits, lost, self.dims[sizes.numpy()])

    def _improve_policies(self, rows: Tensor, labels: Tensor) -> None:  # [2, B], [B]
        """Lines 2-6: samples actions, computes rewards, ascends."""
        sizes = self._gather("size", rows).long()
        can = sizes < self.largest
        has_choice = can.any(0)
        rows, sizes, can, labels = (each[..., has_choice] for each in (rows, sizes, can, labels))
        if not len(labels):
            return
        decisions, rewards, grown = [], [], sizes.clone()
        for number in range(2):
            own = rows[number, can[number]].numpy()
            frequency = torch.from_numpy(self.sides[number].column("seen")[own])
            decisions.append(self._sample(number, frequency, sizes[number, can[number]]))
            grown[number, can[number]] += decisions[number].grows
        with torch.no_grad():
            lost = losses(self._predict(rows, sizes, grown, track=False), labels)
        for number in range(2):
            own = rows[number, can[number]].numpy()
            rewards.append(self._mean_losses(number, own) - lost[can[number]])  # Eq. 2
        self._ascend(decisions, rewards)

    def _decide(self, number: int, seen: Occurrences) -> tuple[Ids, Decision]:
        """Lines 7-8: distinct rows of a side that can grow, and whether they do.

        A row is decided on once, by its last occurrence.
        """
        places = self.sides[number].column("size")[seen.distinct]
        can = places < self.largest
        rows, sizes = seen.distinct[can], torch.from_numpy(places[can]).long()
        if self.config.policy == "always":
            return rows, Decision(torch.empty(0), sizes, torch.ones_like(sizes))
        if self.config.policy == "random":
            draws = torch.rand(len(rows), generator=self.generator)
            return rows, Decision(torch.empty(0), sizes, (draws < self.config.chance).long())
        final = torch.from_numpy(seen.final[seen.last[can]])
        with torch.no_grad():
            if self.config.reward == "delayed":
                return rows, self._sample(number, final, sizes)
            logits = self._logits(number, final, sizes)
        return rows, Decision(logits, sizes, (logits[:, 1] > logits[:, 0]).long())

    def _grow(self, side: Side, rows: Ids) -> None:
        """Line 9: rows take the next size (Eq. 1)."""
        if not len(rows):
            return
        size = side.column("size")
        old = size[rows]
        dims = self.dims[old + 1]
        side.table.resize(torch.from_numpy(rows), torch.from_numpy(dims), init="map")
        size[rows] = old + 1
        side.numbers += int((dims - self.dims[old]).sum())

    def _predict(
        self, rows: Tensor, sizes: Tensor, grown: Tensor, *, track: bool
    ) -> Tensor:  # [B, O]
        """Logits of pairs whose rows of `sizes` are normalised as rows of `grown`. [2, B] each"""
        vectors = []
        for number, side in enumerate(self.sides):
            table = side.table.storage
            # As side.table(rows), which would also multiply the widest rows, by the identity.
            x = lookup(table.weight, table.rows, rows[number], fused=table.fused)
            vectors.append(raise_to_width(x, sizes[number], self.config.sizes, self.maps[number]))
        group = grown.clamp(max=self.groups - 1) + torch.tensor([[0], [self.groups]])
        x = self.norm(torch.cat(vectors), group.flatten(), track=track)
        logits: Tensor = self.inference(x, track=track)
        return logits

    def _logits(self, number: int, frequency: Tensor, sizes: Tensor) -> Tensor:  # -> [n, 2]
        if not len(sizes):
            return torch.zeros(0, 2)
        state = F.one_hot(sizes, self.largest + 1).float()
        logits: Tensor = self.policies[number](frequency, state)
        return logits

    def _sample(self, number: int, frequency: Tensor, sizes: Tensor) -> Decision:
        """Actions drawn from a policy. [n] each"""
        logits = self._logits(number, frequency, sizes)
        chance = torch.softmax(logits.detach(), 1)[:, 1]
        grows = torch.rand(len(sizes), generator=self.generator) < chance
        return Decision(logits, sizes, grows.long())

    def _ascend(self, decisions: Sequence[Decision], rewards: Sequence[Tensor]) -> None:
        """REINFORCE on both policies (Eq. 6 and 7), after the price of growing."""
        terms = []
        for (logits, sizes, grows), reward in zip(decisions, rewards, strict=True):
            earned = reward - self.costs[sizes] * grows
            # Cross-entropy is -log policy(a|s).
            terms.append((earned * F.cross_entropy(logits, grows, reduction="none")).sum())
        total = torch.stack(terms).sum()
        if total.requires_grad:
            adam = self.optimizers["policies"]
            zero_gradients([adam])
            total.backward()
            adam.step()

    def _reward_decisions(
        self, seen: Pair, decided: Sequence[tuple[Ids, Decision]], lost: Tensor
    ) -> None:
        """The delayed reward: rows meet the loss that their last decision led to."""
        decisions, rewards = [], []
        for number, each in enumerate(seen):
            side, (rows, new) = self.sides[number], decided[number]
            kept = side.column("decided")
            is_due = kept[each.distinct, 0] > 0
            due = each.distinct[is_due]
            frequency, sizes, grows = torch.from_numpy(kept[due]).unbind(1)
            decisions.append(Decision(self._logits(number, frequency, sizes), sizes, grows))
            reward = self._mean_losses(number, due) - lost[each.last[is_due]]
            rewards.append(reward - reward.mean() if len(due) else reward)
            kept[due] = 0
            final = side.column("seen")[rows] + each.counts[np.isin(each.distinct, rows)]
            kept[rows] = np.stack([final, new.sizes.numpy(), new.grows.numpy()], 1)
        self._ascend(decisions, rewards)

    def _gather(self, name: str, rows: Tensor) -> Tensor:  # [2, B] -> [2, B, ...]
        """What is kept of the rows of both sides."""
        both = zip(self.sides, rows.numpy(), strict=True)
        return torch.from_numpy(np.stack([side.column(name)[each] for side, each in both]))

    def _mean_losses(self, number: int, rows: Ids) -> Tensor:  # [n] -> [n]
        """Mean of the last T losses of a side's rows, or of as many as there are."""
        kept = self.sides[number].column("losses")
        pushed = self.sides[number].column("pushes")[rows].clip(1, kept.shape[1])
        return torch.from_numpy(kept[rows].sum(1) / pushed.astype(np.float32))


def _push(side: Side, rows: Ids, lost: npt.NDArray[np.float32]) -> None:  # [U], [U]
    """Adds a loss to each row's last T."""
    kept, pushes = side.column("losses"), side.column("pushes")
    kept[rows, pushes[rows] % kept.shape[1]] = lost
    pushes[rows] += 1


class ESAPN(StreamMethod[ESAPNConfig]):
    """ESAPN (H. Liu et al., SIGIR 2020): rows of a stream of ratings grow as a policy decides.

    Args:
        config: its settings.

    Example:
        >>> ESAPN(ESAPNConfig(task="multiclass")).config.sizes
        (2, 4, 8, 16, 64, 128)
    """

    name = "ESAPN"

    def _make_learner(self) -> ESAPNLearner:
        check_esapn(self.config)
        return ESAPNLearner(self.config)
