"""AutoInt (Song et al., *AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural
Networks*, 2019), with a linear part and an MLP beside the attention.

DIFFERS, as in the code that the AutoDim paper builds its models on, so that figures compare:
    - one residual map around all layers of attention, where the paper has one around each;
    - a bias in every map, a map of the joined heads after each layer, and inner products divided by
      the root of a head's width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from varemb.models.layers import make_id_weights, make_mlp


class AutoInt(nn.Module):
    """Logit of a click: a weight per id, an MLP, and fields that attend to each other.

        z = ReLU(attend(...attend(V x)) + R x)
        logit = b + sum_f w[id_f] + sum_f <u_f, z_f> + MLP(concat_f x_f)

    where V and R map each field's vector to the width of the attention, A. b is the bias of the
    MLP's last layer.

    Args:
        cardinalities: rows of each field. [F]
        width: D, numbers of each field's vector.
        embedding: maps ids [B, F] to vectors [B, F, D].
        attention_width: A.
        layers: how often the fields attend.
        heads: of each layer; they divide A.
        hidden: outputs of the MLP's hidden layers.
        dropout: share of the outputs of a hidden layer that is dropped in training.

    Attributes:
        wide: one weight per id, zero at the start.
        project: V.
        attention: the layers of attention.
        residual: R.
        score: u. [1, F * A]
        deep: the MLP.

    Shape:
        - input: [B, F], int32 or int64
        - output: [B]

    Raises:
        ValueError: heads do not divide the attention's width.

    Example:
        >>> import torch
        >>> from varemb import VarEmbedding
        >>> fields = VarEmbedding.for_fields([5, 3], 4, dims=[4, 1])
        >>> AutoInt([5, 3], 4, fields)(torch.tensor([[4, 2], [0, 0]])).shape
        torch.Size([2])
    """

    def __init__(
        self,
        cardinalities: Sequence[int],
        width: int,
        embedding: nn.Module,
        *,
        attention_width: int = 64,
        layers: int = 3,
        heads: int = 2,
        hidden: Sequence[int] = (400, 400),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if attention_width % heads:
            raise ValueError(
                f"AutoInt: heads must divide attention_width, {attention_width}, got {heads}"
            )
        self.embedding = embedding
        self.wide = make_id_weights(cardinalities)
        self.project = nn.Linear(width, attention_width)
        self.attention = nn.Sequential(
            *(_SelfAttention(attention_width, heads) for _ in range(layers))
        )
        self.residual = nn.Linear(width, attention_width)
        self.score = nn.Linear(len(cardinalities) * attention_width, 1, bias=False)
        self.deep = make_mlp(len(cardinalities) * width, hidden, dropout)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B]
        vectors = self.embedding(ids)  # [B, F, D]
        wide = self.wide(ids).sum((1, 2))  # [B, F, 1] -> [B]
        attended = self.attention(self.project(vectors))  # [B, F, A]
        mixed = F.relu(attended + self.residual(vectors))  # [B, F, A]
        score: Tensor = self.score(mixed.flatten(1))  # [B, 1]
        deep: Tensor = self.deep(vectors.flatten(1))  # [B, 1]
        return wide + score.squeeze(1) + deep.squeeze(1)


class _SelfAttention(nn.Module):
    """Each field's vector as a mean of all fields', weighted by how well they fit; several heads.

        head = softmax(Q K^T / sqrt(A / H)) V,   out = [head_1; ...; head_H] O

    Args:
        width: A, of the vectors in and out.
        heads: H, each with A / H numbers of the queries Q, keys K and values V.

    Shape:
        - input, output: [B, F, A]
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)  # Q, K and V, one below the other
        self.output = nn.Linear(width, width)

    def forward(self, vectors: Tensor) -> Tensor:
        parts = self.inputs(vectors).unflatten(2, (3, self.heads, -1))  # [B, F, 3, H, A / H]
        queries, keys, values = parts.permute(2, 0, 3, 1, 4)  # each [B, H, F, A / H]
        mixed = F.scaled_dot_product_attention(queries, keys, values)  # [B, H, F, A / H]
        joined: Tensor = self.output(mixed.transpose(1, 2).flatten(2))
        return joined
