"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from varemb.optim.base import TableOptimizer


class SGD(TableOptimizer):
    """p <- p - lr (g + weight_decay p), on looked-up rows.

    Args:
        params: weights of tables.
        lr, weight_decay: as in torch.optim.SGD.
        fused: apply the update inside backward.
        stochastic_rounding, seed: round new numbers of 16-bit rows at random.
    """

    algorithm = "sgd"
    state_names = ()
    torch_options: ClassVar = {"momentum": 0, "dampening": 0, "nesterov": False, "maximize": False}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        *,
        fused: bool = True,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay}
        super().__init__(
            params, defaults, fused=fused, stochastic_rounding=stochastic_rounding, seed=seed
        )
