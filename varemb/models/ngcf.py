"""NGCF (Wang et al., SIGIR 2019): rows of a table sent over the graph of interactions, layer by
layer, through matrices.

    S^(k) = A^ E^(k),    A^ = D^(-1) (A + I)
    E^(k+1) = dropout(LeakyReLU_0.2(S^(k) W1 + b1 + (E^(k) * S^(k)) W2 + b2))

The vector of a node is E^(0) and the later layers at length 1, one behind the other. In training
edges are left out at random too (node dropout).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from varemb.models.graph import NodeRows, both_ways, multiply, sparse_matrix
from varemb.models.layers import draw_kept

_SLOPE, _LEAST_LENGTH = 0.2, 1e-12


class MeanMatrix(NamedTuple):
    """D^(-1) (A + I) of a graph, and what its transpose needs: the pattern is symmetric."""

    starts: Tensor  # [N + 1]
    columns: Tensor  # [P]
    values: Tensor  # [P]
    mirrored: Tensor  # place of (column, row) for each (row, column). [P]


def mean_matrix(left: Tensor, right: Tensor, num_nodes: int) -> MeanMatrix:
    """The mean over a node and its neighbours, as compressed sparse rows.

    An edge given twice counts once.

    Args:
        left, right: the two ends of each edge. [L], int64
        num_nodes: N.

    Raises:
        ValueError: a node outside the graph.

    Example:
        >>> matrix = mean_matrix(torch.tensor([0, 0]), torch.tensor([1, 2]), 3)
        >>> matrix.columns.tolist(), matrix.values.tolist()[3:]
        ([0, 1, 2, 0, 1, 0, 2], [0.5, 0.5, 0.5, 0.5])
    """
    edges = both_ways("mean_matrix", left, right, num_nodes)  # [2 L]
    loops = torch.arange(num_nodes, device=left.device) * (num_nodes + 1)
    places = torch.cat([edges, loops]).unique()
    rows, columns = places // num_nodes, places % num_nodes
    counts = torch.bincount(rows, minlength=num_nodes)  # [N]
    return MeanMatrix(
        F.pad(counts.cumsum(0), (1, 0)),
        columns,
        (1.0 / counts.float())[rows],
        torch.argsort(columns * num_nodes + rows),
    )


class NGCF(nn.Module):
    """Vectors of all nodes of a graph, W + layers * D wide, W the dim of the widest row.

    Args:
        table: a row per node, as NodeRows takes it.
        matrix: of `mean_matrix`.
        width: D, of the later layers.
        layers: K.
        edge_dropout: share of the edges left out in each training step.
        dropout: share of the numbers of a later layer left out.

    Shape:
        - output: two blocks [N, W + K D], the same: the published code holds the final vectors
          small, not the rows

    Example:
        >>> from varemb import VarEmbedding
        >>> graph = mean_matrix(torch.tensor([0, 0]), torch.tensor([1, 2]), 3)
        >>> NGCF(VarEmbedding(3, 4, dims=[2, 1, 1]), graph, 4)()[1].shape
        torch.Size([3, 14])
    """

    nodes: Tensor

    def __init__(
        self,
        table: nn.Module,
        matrix: MeanMatrix,
        width: int,
        layers: int = 3,
        edge_dropout: float = 0.1,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        num_nodes = len(matrix.starts) - 1
        self.rows, self.matrix = NodeRows(table, width), matrix
        self.edge_dropout, self.dropout = edge_dropout, dropout
        self.sums = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.products = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        for linear in (*self.sums, *self.products):
            assert isinstance(linear, nn.Linear)
            nn.init.xavier_uniform_(linear.weight)
            # Not zeros: a node without edges has a vector of its biases alone where its loop is
            # dropped, and a vector of length 0 has no direction for the gradient to follow.
            nn.init.xavier_uniform_(linear.bias[None])
        device = matrix.starts.device
        self.register_buffer("nodes", torch.arange(num_nodes, device=device), persistent=False)

    def extra_repr(self) -> str:
        return f"edge_dropout={self.edge_dropout}, dropout={self.dropout}"

    def _matrices(self) -> tuple[Tensor, Tensor]:
        """The matrix of this step and its transpose, sparse CSR. [N, N] each"""
        starts, columns, values, mirrored = self.matrix
        if self.training and self.edge_dropout:
            values = values * draw_kept(values, self.edge_dropout)
        size = len(starts) - 1, len(starts) - 1
        return (
            sparse_matrix(starts, columns, values, size),
            sparse_matrix(starts, columns, values.index_select(0, mirrored), size),
        )

    def forward(self) -> tuple[Tensor, Tensor]:
        block = self.rows(self.nodes)  # [N, W]
        blocks, matrices = [block], self._matrices()
        share = self.dropout if self.training else 0.0
        for sums, products in zip(self.sums, self.products, strict=True):
            assert isinstance(sums, nn.Linear) and isinstance(products, nn.Linear)
            weights = sums.weight, products.weight, sums.bias + products.bias
            block, unit = _Layer.apply(block, *weights, *matrices, share)  # [N, D] each
            blocks.append(unit)
        vectors = torch.cat(blocks, 1)
        return vectors, vectors


class _Layer(torch.autograd.Function):
    """E^(k+1) and E^(k+1) at length 1, from E^(k).

    By hand, since in autograd's hands most of a step on the CPU is writing blocks [N, D]: here
    both ways work in place where they can.
    """

    @staticmethod
    def forward(
        ctx: Any,
        block: Tensor,  # [N, W], W <= D: columns behind W would be 0
        first: Tensor,  # W1. [D, D]
        second: Tensor,  # W2. [D, D]
        bias: Tensor,  # b1 + b2. [D]
        matrix: Tensor,
        transposed: Tensor,
        share: float,  # of the numbers left out
    ) -> tuple[Tensor, Tensor]:
        width = block.shape[1]
        spread = multiply(matrix, block)  # S
        product = block * spread
        out = torch.addmm(bias, spread, first[:, :width].T).addmm_(product, second[:, :width].T)
        F.leaky_relu_(out, _SLOPE)
        kept = draw_kept(out, share) if share else None
        if kept is not None:
            out.mul_(kept)
        lengths = torch.linalg.vector_norm(out, dim=1, keepdim=True).clamp_min_(_LEAST_LENGTH)
        unit = out / lengths
        ctx.save_for_backward(block, first, second, spread, product, out, unit, lengths, kept)
        ctx.transposed = transposed
        return out, unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_out: Tensor, of_unit: Tensor) -> tuple[Tensor | None, ...]:
        block, first, second, spread, product, out, unit, lengths, kept = ctx.saved_tensors
        width = block.shape[1]
        along = torch.einsum("nd,nd->n", unit, of_unit)[:, None]
        gradient = torch.addcmul(of_unit, unit, along, value=-1).div_(lengths).add_(of_out)
        if kept is not None:
            gradient.mul_(kept)
        gradient = torch.ops.aten.leaky_relu_backward(gradient, out, _SLOPE, True)
        of_first, of_second = torch.zeros_like(first), torch.zeros_like(second)
        torch.mm(gradient.T, spread, out=of_first[:, :width])
        torch.mm(gradient.T, product, out=of_second[:, :width])
        of_product = gradient @ second[:, :width]
        of_spread = (gradient @ first[:, :width]).addcmul_(of_product, block)
        of_block = multiply(ctx.transposed, of_spread).addcmul_(of_product, spread)
        return of_block, of_first, of_second, gradient.sum(0), None, None, None
