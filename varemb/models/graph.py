"""Products of sparse matrices with blocks of vectors, and the rows of a table that models read."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.ops import lookup


def both_ways(name: str, left: Tensor, right: Tensor, num_nodes: int) -> Tensor:
    """Places row * N + column of some edges in a matrix [N, N], each edge both ways.

    Args:
        name: of the function that makes the matrix, for messages.
        left, right: the two ends of each edge. [L], int64
        num_nodes: N.

    Returns:
        [2 L], in no order, repeats kept.

    Raises:
        ValueError: a node outside the graph.

    Example:
        >>> both_ways("matrix", torch.tensor([0]), torch.tensor([2]), 3)
        tensor([2, 6])
    """
    ends = torch.cat([left, right])
    if ends.numel() and not 0 <= int(ends.min()) <= int(ends.max()) < num_nodes:
        raise ValueError(
            f"{name}: nodes must be in [0, {num_nodes}), got {int(ends.min())} to {int(ends.max())}"
        )
    return ends * num_nodes + torch.cat([right, left])


def sparse_matrix(
    starts: Tensor,  # [N + 1]
    columns: Tensor,  # [P]
    values: Tensor,  # [P]
    size: tuple[int, int],
) -> Tensor:
    """Compressed sparse rows, unchecked; without torch's warning that they are a beta feature."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Ss]parse.*")
        return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


def multiply(matrix: Tensor, block: Tensor) -> Tensor:
    """A sparse matrix times a block of vectors, without gradient.

    On the CPU each row of the result is a bag of the block's rows: for MovieLens 1M at a width of
    128 that takes a fifth of the time of torch's sparse product.

    Args:
        matrix: [N, M], sparse CSR.
        block: [M, W]

    Returns:
        [N, W]

    Example:
        >>> matrix = torch.tensor([[0.0, 2.0], [0.0, 0.0]]).to_sparse_csr()
        >>> multiply(matrix, torch.tensor([[1.0, 1.0], [3.0, 4.0]]))
        tensor([[6., 8.],
                [0., 0.]])
    """
    with torch.no_grad():
        if block.is_cuda:
            return matrix @ block
        return F.embedding_bag(
            matrix.col_indices(),
            block,
            matrix.crow_indices(),
            mode="sum",
            per_sample_weights=matrix.values(),
            include_last_offset=True,
        )


class NodeRows(nn.Module):
    """The rows of a table as wide as the widest of them, for models that pad with zeros.

    Args:
        table: a VarEmbedding that pads, or any module that maps rows [L] to [L, D]. Its dims must
            not change while this module lives.
        width: D.

    Attributes:
        width: of the vectors: the widest row's dim, at least 1; D for other modules.

    Shape:
        - input: [L]
        - output: [L, W]

    Example:
        >>> rows = NodeRows(VarEmbedding(3, 8, dims=[2, 1, 0]), 8)
        >>> rows(torch.tensor([2, 0])).shape
        torch.Size([2, 2])
    """

    def __init__(self, table: nn.Module, width: int) -> None:
        super().__init__()
        if isinstance(table, VarEmbedding) and table.unify is not None:
            raise ValueError("NodeRows: the table must pad its rows, got matrices")
        self.table, self.width = table, width
        if isinstance(table, VarEmbedding) and table.num_embeddings:
            self.width = max(int(table.dims.max()), 1)

    def forward(self, rows: Tensor) -> Tensor:  # [L] -> [L, W]
        table = self.table
        if not isinstance(table, VarEmbedding):
            vectors: Tensor = table(rows)
            return vectors
        narrow = table.storage.rows._replace(width=self.width)
        return lookup(
            table.weight,
            narrow,
            rows,
            padding_idx=table.padding_idx,
            sparse=table.sparse,
            fused=table.storage.fused,
            backend=table.backend,
        )
