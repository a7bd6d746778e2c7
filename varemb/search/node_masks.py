"""A supernet of node rows: small rows count for nothing, and every row is cut to a prefix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varemb.search.optembed import LongTailedStep


class NodeMasks:
    """Which numbers count of the rows that all tables of a recommender have for a node.

    Args:
        num_users: U, of the first nodes.
        num_nodes: N.
        width: D.
        t_init: first thresholds.

    Attributes:
        t: thresholds of users and of items. [2], with gradient
        dims: where the rows of each node are cut. [N]
        tables: whose rows are read, [L] -> [L, D] each.
    """

    def __init__(self, num_users: int, num_nodes: int, width: int, t_init: float) -> None:
        self.t = torch.full((2,), float(t_init), requires_grad=True)
        self.side = (torch.arange(num_nodes) >= num_users).long()  # [N]
        self.dims = torch.full((num_nodes,), width)
        self.columns = torch.arange(width)
        self.tables: list[nn.Module] = []

    def __call__(self, rows: Tensor) -> Tensor:  # [L] -> [L, D]
        """1 for numbers that count, else 0, with the estimated gradient of the threshold."""
        kept: Tensor = LongTailedStep.apply(self._excess(rows))  # [L]
        return kept[:, None] * (self.columns < self.dims[rows, None])

    def _excess(self, rows: Tensor) -> Tensor:  # [L] -> [L]
        """How far a node's mean |number| is above its side's threshold."""
        means = [table(rows).abs().mean(1) for table in self.tables]
        return torch.stack(means).mean(0) - self.t[self.side[rows]]

    @torch.no_grad()
    def kept_rows(self) -> Tensor:
        """Which nodes pass their threshold. [N] bool"""
        return self._excess(torch.arange(len(self.side))) > 0


class MaskedNodes(nn.Module):
    """A table of full rows under masks. [L] -> [L, D]"""

    def __init__(self, table: nn.Module, masks: NodeMasks) -> None:
        super().__init__()
        self.table, self.masks = table, masks
        masks.tables.append(table)

    def forward(self, rows: Tensor) -> Tensor:  # [L] -> [L, D]
        vectors: Tensor = self.table(rows) * self.masks(rows)
        return vectors
