"""FM (Rendle, *Factorization Machines*, 2010), of order two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varemb.models.layers import make_id_weights, multiply_pairs


class FM(nn.Module):
    """Logit of a click: a weight per id plus the inner products of all pairs of fields.

        logit = b + sum_f w[id_f] + sum_{f < g} <x_f, x_g>

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector; no layer of FM depends on it.
        embedding: maps ids [B, F] to vectors [B, F, D].

    Attributes:
        wide: one weight per id, zero at the start.
        bias: b, zero at the start. [1]

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Example:
        >>> from varemb import VarEmbedding
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> FM([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
        torch.Size([2])
    """

    def __init__(self, cardinalities: Sequence[int], width: int, embedding: nn.Module) -> None:
        super().__init__()
        self.embedding = embedding
        self.wide = make_id_weights(cardinalities)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        wide = self.wide(ids).sum((1, 2))  # [B, F, 1] -> [B]
        pairs = multiply_pairs(self.embedding(ids)).sum(1)  # [B, D] -> [B]
        return self.bias + wide + pairs
