"""Layers that several recommenders share: a weight per id, the MLP, and the products of pairs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws its numbers as `torch.rand` does.

    On a CPU torch draws those of `nn.Dropout` one by one in double precision, which takes a quarter
    of the step of a small MLP; this one takes half of that.

    Raises:
        ValueError: p is not in [0, 1).

    Shape:
        - input, output: any, the same

    Example:
        >>> Dropout(0.5)(torch.ones(4)).unique().tolist() in ([0.0], [2.0], [0.0, 2.0])
        True
    """

    def __init__(self, p: float = 0.5) -> None:
        super().__init__(p)
        if p == 1:
            raise ValueError("Dropout: p must be below 1, got 1")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        return input * draw_kept(input, self.p)


def draw_kept(like: Tensor, p: float) -> Tensor:
    """What dropout multiplies a tensor with: 0 with probability p, else 1 / (1 - p).

    Example:
        >>> draw_kept(torch.ones(2), 0.0)
        tensor([1., 1.])
    """
    # 1 with probability 1 - p, else 0; bools would be several times slower
    kept = torch.rand(like.shape, device=like.device).add_(1 - p).floor_().div_(1 - p)
    return kept.to(like.dtype)


def make_id_weights(cardinalities: Sequence[int]) -> VarEmbedding:
    """One weight per id, zero at the start: a table of fields that is one number wide.

    Args:
        cardinalities: rows of each field. [F]

    Example:
        >>> make_id_weights([5, 3]).weight
        Parameter containing:
        tensor([0., 0., 0., 0., 0., 0., 0., 0.], requires_grad=True)
    """
    table = VarEmbedding.for_fields(list(cardinalities), 1)
    nn.init.zeros_(table.weight)
    return table


def make_mlp(inputs: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """Hidden layers Linear, BatchNorm, ReLU, Dropout, then a Linear to one number.

    DIFFERS: not every paper has BatchNorm in its MLP; here all models have the same layers, so
    that a comparison shows what the models add to them.

    Args:
        inputs: numbers of a row that enter.
        hidden: outputs of the hidden layers; none leaves one Linear.
        dropout: share of the outputs of a hidden layer that is dropped in training.

    Shape:
        - input: [B, inputs]
        - output: [B, 1]

    Example:
        >>> [type(layer).__name__ for layer in make_mlp(6, [4], 0.2)]
        ['Linear', 'BatchNorm1d', 'ReLU', 'Dropout', 'Linear']
    """
    sizes = (inputs, *hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], 1))


def multiply_pairs(vectors: Tensor) -> Tensor:
    """Products of the vectors of two fields, number by number, summed over all pairs of fields.

        out = sum_{f < g} x_f x_g = ((sum_f x_f)^2 - sum_f x_f^2) / 2

    The right side takes F products, the left one F (F - 1) / 2.

    Args:
        vectors: x. [B, F, D]

    Returns:
        [B, D]; zeros when F is 1.

    Example:
        >>> import torch
        >>> multiply_pairs(torch.tensor([[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]]))  # 3 + 5 + 15, ...
        tensor([[23., 44.]])
    """
    return (vectors.sum(1).square() - vectors.square().sum(1)) / 2
