"""NFM (He and Chua, *Neural Factorization Machines for Sparse Predictive Analytics*, 2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from varemb.models.layers import Dropout, make_id_weights, make_mlp, multiply_pairs


class NFM(nn.Module):
    """Logit of a click: a weight per id plus an MLP over the products of all pairs of fields.

        logit = b + sum_f w[id_f] + MLP(Dropout(BatchNorm(sum_{f < g} x_f x_g)))

    where x_f x_g multiplies number by number. b is the bias of the MLP's last layer.

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector.
        embedding: maps ids [B, F] to vectors [B, F, D].
        hidden: outputs of the hidden layers.
        dropout: share of the products, and of the outputs of a hidden layer, that is dropped in
            training.

    Attributes:
        wide: one weight per id, zero at the start.
        pairs: BatchNorm and Dropout of the products.
        deep: the MLP.

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Example:
        >>> import torch
        >>> from varemb import VarEmbedding
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> NFM([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
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
        self.wide = make_id_weights(cardinalities)
        self.pairs = nn.Sequential(nn.BatchNorm1d(width), Dropout(dropout))
        self.deep = make_mlp(width, hidden, dropout)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        wide = self.wide(ids).sum((1, 2))  # [B, F, 1] -> [B]
        pairs = self.pairs(multiply_pairs(self.embedding(ids)))  # [B, D]
        deep: Tensor = self.deep(pairs)  # [B, 1]
        return wide + deep.squeeze(1)
