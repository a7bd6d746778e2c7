"""Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from varemb.optim.base import TableOptimizer


class Adam(TableOptimizer):
    """Adam (Kingma & Ba, 2015, Alg. 1) on looked-up rows; state 2 [E].

    Differs from torch.optim.Adam: rows that were not looked up rest. With every row looked up in
    every step the two agree.

    Args:
        params: weights of tables.
        lr, betas, eps, weight_decay: as in torch.optim.Adam.
        fused: apply the update inside backward.
        stochastic_rounding, seed: round new numbers of 16-bit rows at random.
    """

    algorithm = "adam"
    state_names = ("exp_avg", "exp_avg_sq")
    torch_options: ClassVar = {
        "amsgrad": False,
        "maximize": False,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        fused: bool = True,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, fused=fused, stochastic_rounding=stochastic_rounding, seed=seed
        )
