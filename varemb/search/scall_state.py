"""What SCALL's agent sees and does: a state whose length does not depend on the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from varemb.budget import Ints, fill_budget
from varemb.nn import VarEmbedding
from varemb.search.budget_table import mean_rows
from varemb.search.scall_config import SCALLConfig
from varemb.search.size_shares import dims_for_action

Floats = npt.NDArray[np.float64]


def frequency_profile(counts: Ints, groups: int) -> Floats:  # [groups]
    """Counts sorted from the largest, scaled to [0, 1], averaged over groups of equal size.

    A group holds ceil(n / groups) rows; groups behind the last row are 0.

    Example:
        >>> frequency_profile(np.array([1, 5, 3, 1, 1]), 3)
        array([0.75, 0.  , 0.  ])
    """
    line = np.sort(counts)[::-1].astype(np.float64)
    spread = line[0] - line[-1]
    line = (line - line[-1]) / spread if spread > 0 else np.zeros_like(line)
    size = -(-len(line) // groups)
    starts = np.arange(0, len(line), size)
    sums = np.add.reduceat(line, starts)
    profile = np.zeros(groups)
    profile[: len(starts)] = sums / np.diff(np.append(starts, len(line)))
    return profile


def state_vector(
    counts: tuple[Ints, Ints],
    dims: tuple[Ints, Ints],
    means: Tensor,  # [2, D]
    last_reward: float,
    groups: int,
) -> Tensor:  # [4 + 2 groups + 2 D]
    """Both frequency profiles, the last reward, the share of users, mean rows, spread of dims.

    Args:
        counts: frequencies of users and of items. [U], [V]
        dims: of users and of items. [U'], [V']
        means: mean row of users and of items. [2, D]
        last_reward: the last trial's fitness over the reference's.
        groups: of the frequency profiles.
    """
    profiles = np.concatenate([frequency_profile(each, groups) for each in counts])
    share = len(counts[0]) / (len(counts[0]) + len(counts[1]))
    spread = [float(np.ptp(each)) / max(means.shape[1] - 1, 1) for each in dims]
    return torch.cat([
        torch.from_numpy(profiles).float(),
        torch.tensor([last_reward, share]),
        means.flatten(),
        torch.tensor(spread),
    ])  # fmt: skip


def state_size(config: SCALLConfig) -> int:
    """Numbers of a state."""
    return 4 + 2 * config.groups + 2 * config.width


@dataclass(frozen=True)
class Situation:
    """Users and items, how frequent they are, and the budget that their rows share.

    Attributes:
        nodes: table row of each user and of each item. [U], [V]
        frequencies: what ranks them. [U], [V]
        budget: numbers.
        config: settings.
    """

    nodes: tuple[Ints, Ints]
    frequencies: tuple[Ints, Ints]
    budget: int
    config: SCALLConfig

    def fill(self, weights: Floats) -> Ints:  # [N] -> [N]
        """Dims of all rows, in proportion to some weights."""
        return fill_budget(weights, np.full(len(weights), self.config.width), self.budget)

    def uniform_dims(self) -> Ints:
        """Dims of all rows that differ by at most 1. [N]"""
        return self.fill(np.ones(self.num_rows))

    def frequent_dims(self) -> Ints:
        """Dims of all rows in proportion to their frequencies. [N]"""
        weights = np.empty(self.num_rows)
        for nodes, each in zip(self.nodes, self.frequencies, strict=True):
            weights[nodes] = each
        return self.fill(weights)

    @property
    def num_rows(self) -> int:
        """N, users and items."""
        return sum(map(len, self.nodes))

    def dims_for(self, action: Tensor) -> Ints:
        """Dims of all rows for the action (beta, a_u, a_v). [N]"""
        beta, of_users, of_items = action.tolist()
        config = self.config
        if config.split == "rows":  # 0.5 gives users and items the same mean dim
            users, items = map(len, self.nodes)
            beta = beta * users / (beta * users + (1 - beta) * items)
        sides = dims_for_action(
            (beta, of_users, of_items), self.frequencies, self.budget, config.width,
            config.distribution, scale=config.scale,
        )  # fmt: skip
        dims = np.empty(self.num_rows, np.int64)
        for nodes, each in zip(self.nodes, sides, strict=True):
            dims[nodes] = each
        return dims

    def state(self, table: VarEmbedding, last_reward: float) -> Tensor:
        """What the agent sees, with the rows of this table, which may lack the newest ones."""
        dims = table.dims.numpy()
        users, items = (each[each < len(dims)] for each in self.nodes)
        return state_vector(
            self.frequencies,
            (dims[users], dims[items]),
            mean_rows(table, (users, items)),
            last_reward,
            self.config.groups,
        )
