"""Matrix factorisation: the score of a user and an item is the product of their rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from varemb.models.graph import NodeRows


class MF(nn.Module):
    """Vectors of all nodes, users and items: the rows of a table.

    Args:
        table: a row per node, as NodeRows takes it.
        num_nodes: N.
        width: D.

    Shape:
        - output: two blocks [N, W], the same: the vectors to hold small and those that are scored

    Example:
        >>> from varemb import VarEmbedding
        >>> first, vectors = MF(VarEmbedding(3, 4, dims=[2, 1, 1]), 3, 4)()
        >>> vectors.shape, first is vectors
        (torch.Size([3, 2]), True)
    """

    nodes: Tensor

    def __init__(self, table: nn.Module, num_nodes: int, width: int) -> None:
        super().__init__()
        self.rows = NodeRows(table, width)
        self.register_buffer("nodes", torch.arange(num_nodes), persistent=False)

    def forward(self) -> tuple[Tensor, Tensor]:
        vectors = self.rows(self.nodes)
        return vectors, vectors
