"""ESAPN as it is usually written: a dense table per size, every chain for every row, dense Adam.

The method is the one of ``varemb/search/esapn.py`` with the published code's normalisation: each of
the six tables holds all ids, all six are looked up and brought to the width, and a one-hot vector
picks one. It is what the speed and memory of the search are compared with.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

SIZES = (2, 4, 8, 16, 64, 128)
HIDDEN, PAST = 512, 5


class DenseSide(nn.Module):
    """Six tables of one side, its chain and its normalisation."""

    def __init__(self, ids: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(ids, size) for size in SIZES)
        self.maps = nn.ModuleList(
            nn.Linear(small, large) for small, large in itertools.pairwise(SIZES)
        )
        self.norm = nn.BatchNorm1d(SIZES[-1])

    def forward(self, ids: Tensor, sizes: Tensor) -> Tensor:  # [B], [B] -> [B, D]
        picked = F.one_hot(sizes, len(SIZES)).float()
        total = torch.zeros(())
        for k, table in enumerate(self.tables):
            x = table(ids)
            for linear in self.maps[k:]:
                x = linear(x)
            total = total + picked[:, k, None] * torch.tanh(self.norm(x))
        return total

    @torch.no_grad()
    def grow(self, ids: Tensor, sizes: Tensor) -> None:
        """Writes the next larger row of ids that have these sizes."""
        for k, linear in enumerate(self.maps):
            chosen = ids[sizes == k]
            if len(chosen):
                self.tables[k + 1].weight[chosen] = linear(self.tables[k].weight[chosen])


class DensePolicy(nn.Module):
    """Logits of "unchanged" and "enlarge"."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.frequency = nn.Embedding(most + 1, 32)
        self.norm = nn.BatchNorm1d(32)
        self.layers = nn.Sequential(
            nn.Linear(32 + len(SIZES), HIDDEN), nn.BatchNorm1d(HIDDEN), nn.Tanh(),
            nn.Linear(HIDDEN, 2),
        )  # fmt: skip

    def forward(self, frequency: Tensor, sizes: Tensor) -> Tensor:  # [B], [B] -> [B, 2]
        q = self.norm(self.frequency(frequency.clamp(max=self.most)))
        return self.layers(torch.cat([q, F.one_hot(sizes, len(SIZES)).float()], 1))


class DenseESAPN:
    """The whole method on ids that are known before, binary task.

    Args:
        users, items: ids of each side, counted from 0.
        validation: last_batch, or uniform over the past.
    """

    def __init__(self, users: int, items: int, validation: str = "uniform") -> None:
        self.validation = validation
        self.sides = nn.ModuleList([DenseSide(users), DenseSide(items)])
        self.top = nn.Sequential(
            nn.BatchNorm1d(2 * SIZES[-1]), nn.Linear(2 * SIZES[-1], HIDDEN),
            nn.BatchNorm1d(HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1),
        )  # fmt: skip
        self.policies = nn.ModuleList([DensePolicy(1000), DensePolicy(1000)])
        self.adam = torch.optim.Adam([*self.sides.parameters(), *self.top.parameters()], lr=1e-3)
        self.policy_adam = torch.optim.Adam(self.policies.parameters(), lr=1e-4)
        counts = (users, items)
        self.sizes = [torch.zeros(count, dtype=torch.int64) for count in counts]
        self.seen = [torch.zeros(count, dtype=torch.int64) for count in counts]
        self.past = [torch.zeros(count, PAST) for count in counts]
        self.pushes = [torch.zeros(count, dtype=torch.int64) for count in counts]
        self.history: list[tuple[Tensor, Tensor]] = []

    def step(self, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # [2, B], [B]
        """Probabilities before learning, and losses, of one batch. [B], [B]"""
        if self.history:
            self._improve_policies()
        for side in range(2):
            self.seen[side] += torch.bincount(ids[side], minlength=len(self.seen[side]))
        with torch.no_grad():
            for side in range(2):
                chosen = ids[side].unique()
                sizes = self.sizes[side][chosen]
                logits = self.policies[side](self.seen[side][chosen], sizes)
                grows = (logits.argmax(1) == 1) & (sizes < len(SIZES) - 1)
                self.sides[side].grow(chosen[grows], sizes[grows])
                self.sizes[side][chosen[grows]] += 1
        p = self._predict(ids, [self.sizes[side][ids[side]] for side in range(2)])
        lost = (p - labels).square()
        self.adam.zero_grad()
        lost.sum().backward()
        self.adam.step()
        for side in range(2):
            where = self.pushes[side][ids[side]] % PAST
            self.past[side][ids[side], where] = lost.detach()
            self.pushes[side][ids[side].unique()] += 1
        self.history.append((ids, labels))
        return p.detach(), lost.detach()

    def _predict(self, ids: Tensor, sizes: list[Tensor]) -> Tensor:  # [B]
        both = [self.sides[side](ids[side], sizes[side]) for side in range(2)]
        return torch.sigmoid(self.top(torch.cat(both, 1))[:, 0])

    def _improve_policies(self) -> None:
        ids, labels = self.history[-1]
        if self.validation == "uniform":
            batches = np.random.randint(len(self.history), size=len(labels))
            places = np.random.randint(len(labels), size=len(labels))
            drawn = [(self.history[b], e) for b, e in zip(batches, places, strict=True)]
            ids = torch.stack([batch[0][:, e % len(batch[1])] for batch, e in drawn], 1)
            labels = torch.stack([batch[1][e % len(batch[1])] for batch, e in drawn])
        logits, actions, sizes = [], [], []
        for side in range(2):
            before = self.sizes[side][ids[side]]
            logits.append(self.policies[side](self.seen[side][ids[side]], before))
            action = torch.multinomial(logits[side].softmax(1), 1)[:, 0]
            actions.append(action * (before < len(SIZES) - 1))
            sizes.append(before + actions[side])
        with torch.no_grad():
            for side in range(2):
                grown = actions[side] == 1
                before = sizes[side] - actions[side]
                self.sides[side].grow(ids[side][grown], before[grown])
            lost = (self._predict(ids, sizes) - labels).square()
        loss = torch.zeros(())
        for side in range(2):
            pushed = self.pushes[side][ids[side]].clamp(1, PAST)
            reward = self.past[side][ids[side]].sum(1) / pushed - lost
            surprise = F.cross_entropy(logits[side], actions[side], reduction="none")
            loss = loss + (reward * surprise).sum()
        self.policy_adam.zero_grad()
        loss.backward()
        self.policy_adam.step()

    def nbytes(self) -> int:
        """Bytes of tables, their gradients and Adam's state."""
        total = 0
        for side in self.sides:
            for table in side.tables:
                state = self.adam.state[table.weight]
                kept = [table.weight, table.weight.grad, state["exp_avg"], state["exp_avg_sq"]]
                total += sum(tensor.nbytes for tensor in kept if tensor is not None)
        return total
