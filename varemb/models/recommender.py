"""Recommenders by name: how each is made around tables of node rows, users first, then items.

All of them have two functions: `loss` of a batch of triples (user, item bought, item not bought),
which sends the rows over the graph once, and `ranking`, which does so once for all users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from varemb.models.lightgcn import LightGCN, bpr_loss, normalized_adjacency
from varemb.models.mf import MF
from varemb.models.ncf import NCF
from varemb.models.ngcf import NGCF, mean_matrix

MakeNodeTable = Callable[[float], nn.Module]  # deviation of the first numbers -> [L] to [L, D]
MakeRecommender = Callable[[MakeNodeTable], Any]  # "DotRecommender | NCF"

RECOMMENDERS = ("mf", "ncf", "ngcf", "lightgcn")
# How CIESS's code trains each: fields of PairwiseConfig. MF as LightGCN, which is MF over a graph.
TRAININGS: dict[str, dict[str, Any]] = {
    "mf": {"decay": 1e-4, "lr_steps": 200, "lr_floor": 1e-3},
    "ncf": {"decay": 1e-2, "lr_steps": 50, "lr_floor": 1e-4},
    "ngcf": {"decay": 1e-3, "lr_steps": 100, "lr_floor": 1e-3},
    "lightgcn": {"decay": 1e-4, "lr_steps": 200, "lr_floor": 1e-3},
}


class DotRecommender(nn.Module):
    """A recommender whose score is the product of two nodes' vectors.

    Args:
        encoder: () -> two blocks [N, W]: the vectors to hold small, and those that are scored.
        num_users: U, of the first nodes.

    Example:
        >>> from varemb import VarEmbedding
        >>> model = DotRecommender(MF(VarEmbedding(5, 4, dims=2), 5, 4), num_users=2)
        >>> [block.shape for block in model.ranking()]
        [torch.Size([2, 2]), torch.Size([3, 2])]
    """

    def __init__(self, encoder: nn.Module, num_users: int) -> None:
        super().__init__()
        self.encoder, self.num_users = encoder, num_users

    def loss(self, users: Tensor, positives: Tensor, negatives: Tensor, decay: float) -> Tensor:
        """mean softplus(<u, n> - <u, p>) + decay * (squared norms of the batch's vectors) / B.

        Args:
            users, positives, negatives: rows of a triple; items count from 0. [B], int64
            decay: weight of the L2 term.
        """
        first, vectors = self.encoder()
        items = positives + self.num_users, negatives + self.num_users
        return bpr_loss(first, vectors, users, *items, decay)

    @torch.no_grad()
    def ranking(self) -> tuple[Tensor, Tensor]:
        """Vectors of the users [U, W] and of the items [V, W], as `rank_metrics` takes them."""
        vectors: Tensor = self.encoder()[1]
        return vectors[: self.num_users], vectors[self.num_users :]


def prepare_recommender(
    name: str,
    users: Tensor,
    items: Tensor,
    num_users: int,
    num_items: int,
    width: int,
    layers: int = 3,
) -> MakeRecommender:
    """What makes recommenders of one kind over one set of pairs; the graph is built here, once.

    Args:
        name: one of RECOMMENDERS.
        users, items: the pairs to learn from, rows of users and items. [L] each, int64
        num_users, num_items: U and V; nodes are users first.
        width: D.
        layers: of the graph models.

    Raises:
        ValueError: an unknown name, or a row outside its table.

    Example:
        >>> from varemb import VarEmbedding
        >>> pairs = torch.tensor([0, 1]), torch.tensor([0, 2])
        >>> make = prepare_recommender("lightgcn", *pairs, 2, 3, width=4)
        >>> model = make(lambda std: VarEmbedding(5, 4, dims=[4, 2, 1, 1, 1]))
        >>> model.loss(*pairs, torch.tensor([1, 0]), decay=0.0).dim()
        0
    """
    nodes = num_users + num_items
    # Xavier's deviation for a table [N, D]. DIFFERS: normal, and of all nodes, where published code
    # draws users and items apart, on ml-1m with deviations of .018 and .023 for .014 here.
    xavier = (2 / (nodes + width)) ** 0.5
    if name == "mf":
        return lambda table: DotRecommender(MF(table(0.01), nodes, width), num_users)
    if name == "ncf":
        return lambda table: NCF(table(xavier), table(xavier), num_users, num_items, width)
    if name == "ngcf":
        means = mean_matrix(users, items + num_users, nodes)
        return lambda table: DotRecommender(NGCF(table(xavier), means, width, layers), num_users)
    if name == "lightgcn":
        graph = normalized_adjacency(users, items + num_users, nodes)
        return lambda table: DotRecommender(LightGCN(table(0.01), graph, layers), num_users)
    raise ValueError(f"recommender: must be one of {', '.join(RECOMMENDERS)}, got {name!r}")
