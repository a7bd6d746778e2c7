"""DeepFM (Guo et al., *DeepFM: A Factorization-Machine based Neural Network for CTR Prediction*,
2017)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from varemb.models.layers import make_id_weights, make_mlp, multiply_pairs


class DeepFM(nn.Module):
    """Logit of a click: an FM plus an MLP, over the same vectors.

        logit = b + sum_f w[id_f] + sum_{f < g} <x_f, x_g> + MLP(concat_f x_f)

    b is the bias of the MLP's last layer.

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector.
        embedding: maps ids [B, F] to vectors [B, F, D].
        hidden: outputs of the hidden layers.
        dropout: share of the outputs of a hidden layer that is dropped in training.

    Attributes:
        wide: one weight per id, zero at the start.
        deep: the MLP.

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Example:
        >>> import torch
        >>> from varemb import VarEmbedding
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> DeepFM([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
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
        self.deep = make_mlp(len(cardinalities) * width, hidden, dropout)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        vectors = self.embedding(ids)  # [B, F, D]
        wide = self.wide(ids).sum((1, 2))  # [B, F, 1] -> [B]
        pairs = multiply_pairs(vectors).sum(1)  # [B, D] -> [B]
        deep: Tensor = self.deep(vectors.flatten(1))  # [B, 1]
        return wide + pairs + deep.squeeze(1)
