"""Row-wise Adagrad: a step per row."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from varemb.optim.base import TableOptimizer


class RowWiseAdagrad(TableOptimizer):
    """s <- s + mean(g^2), p <- p - lr g / (sqrt(s) + eps), the rule of FBGEMM's row-wise Adagrad;
    state [N], 4 bytes a row. The mean is over the row's own d[r] numbers, under a `limit` over
    those that it lets through.

    Args:
        params: weights of tables.
        lr, weight_decay, eps: as in torch.optim.Adagrad.
        fused: apply the update inside backward.
        stochastic_rounding, seed: round new numbers of 16-bit rows at random.
    """

    algorithm = "row_wise_adagrad"
    state_names = ("sum",)
    is_row_wise = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        eps: float = 1e-10,
        *,
        fused: bool = True,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        super().__init__(
            params, defaults, fused=fused, stochastic_rounding=stochastic_rounding, seed=seed
        )
