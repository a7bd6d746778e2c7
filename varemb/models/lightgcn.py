"""LightGCN (He et al., 2020): rows of a table smoothed over the graph of interactions.

    E^(k+1) = D^(-1/2) A D^(-1/2) E^(k),    vectors = mean of E^(0) .. E^(K)

without self-loops, weights or dropout. Users and items are nodes of one graph and rows of one
table, in any order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from varemb.models.graph import NodeRows, both_ways, multiply, sparse_matrix


def normalized_adjacency(left: Tensor, right: Tensor, num_nodes: int) -> Tensor:
    """The graph of some edges, both ways, each number 1 / sqrt(deg(row) deg(column)).

    An edge given twice counts once; a node without edges has an empty row.

    Args:
        left, right: the two ends of each edge. [L], int64
        num_nodes: nodes of the graph.

    Returns:
        [N, N], sparse CSR, float32, symmetric.

    Raises:
        ValueError: a node outside the graph.

    Example:
        >>> normalized_adjacency(torch.tensor([0, 0]), torch.tensor([1, 2]), 3).to_dense()
        tensor([[0.0000, 0.7071, 0.7071],
                [0.7071, 0.0000, 0.0000],
                [0.7071, 0.0000, 0.0000]])
    """
    edges = both_ways("normalized_adjacency", left, right, num_nodes)  # [2 L]
    places = torch.unique(edges)  # sorted by row, then column
    rows, columns = places // num_nodes, places % num_nodes
    degrees = torch.bincount(rows, minlength=num_nodes)  # [N]
    starts = F.pad(degrees.cumsum(0), (1, 0))  # [N + 1]
    scales = degrees.double().rsqrt()
    values = (scales[rows] * scales[columns]).float()
    return sparse_matrix(starts, columns, values, (num_nodes, num_nodes))


class _Propagate(torch.autograd.Function):
    """(I + A + .. + A^K) / (K + 1) applied to a block, by Horner's rule: K products, each way."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, adjacency: Tensor, layers: int) -> Tensor:
        ctx.adjacency, ctx.layers = adjacency, layers
        return _mean_of_layers(block, adjacency, layers)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        # The adjacency is symmetric, and with it any polynomial of it.
        return _mean_of_layers(gradients[0], ctx.adjacency, ctx.layers), None, None


def _mean_of_layers(block: Tensor, adjacency: Tensor, layers: int) -> Tensor:
    out = block = block.contiguous()
    for _ in range(layers):
        out = multiply(adjacency, out).add_(block)
    return out / (layers + 1)


def propagate(block: Tensor, adjacency: Tensor, layers: int) -> Tensor:
    """Mean of a block and its products with the adjacency, once to `layers` times.

    Args:
        block: first vectors. [N, D]
        adjacency: symmetric, sparse CSR. [N, N]
        layers: K.

    Returns:
        [N, D]

    Example:
        >>> pair = normalized_adjacency(torch.tensor([0]), torch.tensor([1]), 2)
        >>> propagate(torch.tensor([[1.0], [0.0]]), pair, 3)
        tensor([[0.5000],
                [0.5000]])
    """
    out: Tensor = _Propagate.apply(block, adjacency, layers)
    return out


class LightGCN(nn.Module):
    """Vectors of all nodes of a graph, from a table of rows of different dims.

    A column never mixes with another. Of a VarEmbedding, whose rows are padded with zeros, only
    the columns up to the widest row are therefore computed; the others are 0.

    Args:
        table: a row per node, [L] -> [L, D]: a VarEmbedding with "pad", whose dims do not change
            while this module lives, or any other module.
        adjacency: of `normalized_adjacency`. [N, N]
        layers: K.

    Shape:
        - output: two blocks [N, W], W the dim of the widest row (D of another module): the first
          and the smoothed vectors

    Raises:
        ValueError: a VarEmbedding reaches its width through matrices.

    Example:
        >>> from varemb import VarEmbedding
        >>> table = VarEmbedding(3, 8, dims=[2, 1, 1])
        >>> graph = normalized_adjacency(torch.tensor([0, 0]), torch.tensor([1, 2]), 3)
        >>> [block.shape for block in LightGCN(table, graph)()]
        [torch.Size([3, 2]), torch.Size([3, 2])]
    """

    nodes: Tensor

    def __init__(self, table: nn.Module, adjacency: Tensor, layers: int = 3) -> None:
        super().__init__()
        self.rows = NodeRows(table, width=0)  # nothing here depends on the width
        self.adjacency, self.layers = adjacency, layers
        nodes = torch.arange(adjacency.shape[0], device=adjacency.device)
        self.register_buffer("nodes", nodes, persistent=False)

    def extra_repr(self) -> str:
        return f"layers={self.layers}"

    def forward(self) -> tuple[Tensor, Tensor]:
        first = self.rows(self.nodes)
        return first, propagate(first, self.adjacency, self.layers)


def bpr_loss(
    first: Tensor,  # [N, W]
    vectors: Tensor,  # [N, W]
    users: Tensor,  # [B]
    positives: Tensor,  # [B]
    negatives: Tensor,  # [B]
    decay: float,
) -> Tensor:
    """mean softplus(<u, n> - <u, p>) + decay * (squared norms of the batch's first vectors) / B.

    Args:
        first: vectors before propagation, which the L2 term holds small. [N, W]
        vectors: vectors that are scored. [N, W]
        users, positives, negatives: nodes of each triple. [B], int64
        decay: weight of the L2 term.

    Example:
        >>> eye = torch.eye(3)
        >>> bpr_loss(eye, eye, *torch.tensor([[0], [1], [2]]), decay=0.0)
        tensor(0.6931)
    """
    loss = F.softplus(_Differences.apply(vectors, users, positives, negatives)).mean()
    nodes = torch.cat([users, positives, negatives])  # [3 B]
    times = torch.bincount(nodes, minlength=len(first))  # [N], how often the batch has each node
    return loss + decay * torch.dot(times.to(first.dtype), first.square().sum(1)) / len(users)


class _Differences(torch.autograd.Function):
    """<u, n> - <u, p> of each triple. [B]

    The gradient is a sparse symmetric matrix of the triples times the vectors: three blocks [B, W]
    less to write than autograd's, which for NGCF (W = 512) is a quarter of a step.
    """

    @staticmethod
    def forward(
        ctx: Any, vectors: Tensor, users: Tensor, positives: Tensor, negatives: Tensor
    ) -> Tensor:
        ctx.save_for_backward(vectors, users, positives, negatives)
        signs = vectors.new_tensor([1.0, -1.0]).repeat(len(users), 1)  # [B, 2]
        both = torch.stack([negatives, positives], 1)
        difference = F.embedding_bag(both, vectors, mode="sum", per_sample_weights=signs)  # [B, W]
        return torch.einsum("bw,bw->b", vectors.index_select(0, users), difference)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        vectors, users, positives, negatives = ctx.saved_tensors
        rows = torch.cat([users, users, negatives, positives])  # [4 B]
        columns = torch.cat([negatives, positives, users, users])
        values = torch.cat([gradient, -gradient, gradient, -gradient])
        order = torch.argsort(rows, stable=True)
        starts = F.pad(torch.bincount(rows, minlength=len(vectors)).cumsum(0), (1, 0))  # [N + 1]
        size = len(vectors), len(vectors)
        triples = sparse_matrix(starts, columns[order], values[order], size)
        return multiply(triples, vectors.contiguous()), None, None, None
