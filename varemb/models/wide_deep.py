"""Wide&Deep (Cheng et al., *Wide & Deep Learning for Recommender Systems*, 2016)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from varemb.nn import VarEmbedding


class WideDeep(nn.Module):
    """Logit of a click: a weight per id (wide) plus an MLP over the concatenated vectors (deep).

        logit = b + sum_f w[id_f] + MLP(concat_f x_f)

    with hidden layers Linear, BatchNorm, ReLU, Dropout.

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector.
        embedding: maps ids [B, F] to vectors [B, F, D].
        hidden: outputs of the hidden layers.
        dropout: share of the outputs of a hidden layer that is dropped in training.

    Attributes:
        wide: one weight per id, zero at the start.

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Example:
        >>> import torch
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> WideDeep([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        width: int,
        embedding: nn.Module,
        *,
        hidden: Sequence[int] = (128, 128),
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.wide = VarEmbedding.for_fields(list(cardinalities), 1)
        nn.init.zeros_(self.wide.weight)
        layers: list[nn.Module] = []
        for inputs, outputs in itertools.pairwise((len(cardinalities) * width, *hidden)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
            layers.append(nn.Dropout(dropout))
        self.deep = nn.Sequential(*layers, nn.Linear(hidden[-1], 1))  # its bias is b

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        wide = self.wide(ids).sum((1, 2))  # [B, F, 1] -> [B]
        deep: Tensor = self.deep(self.embedding(ids).flatten(1))  # [B, 1]
        return wide + deep.squeeze(1)
