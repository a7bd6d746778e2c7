"""IPNN (Qu et al., *Product-based Neural Networks for User Response Prediction*, 2016)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varemb.models.layers import make_mlp


class IPNN(nn.Module):
    """Logit of a click: an MLP over the concatenated vectors and their inner products.

        logit = MLP([concat_f x_f; <x_f, x_g> for all f < g])

    The products follow the vectors as (0, 1), (0, 2), ..., (F - 2, F - 1).

    DIFFERS: every product has its own weights, where the paper factors them; with F fields there
    are only F (F - 1) / 2. The product of a vector with itself is left out: it is of one field.

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector.
        embedding: maps ids [B, F] to vectors [B, F, D].
        hidden: outputs of the hidden layers.
        dropout: share of the outputs of a hidden layer that is dropped in training.

    Attributes:
        deep: the MLP.

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Example:
        >>> from varemb import VarEmbedding
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> IPNN([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
        torch.Size([2])
    """

    places: Tensor

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
        fields = len(cardinalities)
        first, second = torch.triu_indices(fields, fields, offset=1)
        # of the pairs f < g among all F * F products
        self.register_buffer("places", first * fields + second, persistent=False)
        self.deep = make_mlp(fields * width + len(self.places), hidden, dropout)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        vectors = self.embedding(ids)  # [B, F, D]
        products = (vectors @ vectors.transpose(1, 2)).flatten(1)  # [B, F * F]
        pairs = products.index_select(1, self.places)  # [B, F (F - 1) / 2]
        deep: Tensor = self.deep(torch.cat([vectors.flatten(1), pairs], 1))  # [B, 1]
        return deep.squeeze(1)
