"""Adagrad: a step per number, by the squares of its gradients so far."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from varemb.optim.base import TableOptimizer


class Adagrad(TableOptimizer):
    """s <- s + g^2, p <- p - lr g / (sqrt(s) + eps) (Duchi et al., 2011); state [E].

    Args:
        params: weights of tables.
        lr, weight_decay, initial_accumulator_value, eps: as in torch.optim.Adagrad.
        fused: apply the update inside backward.
        stochastic_rounding, seed: round new numbers of 16-bit rows at random.
    """

    algorithm = "adagrad"
    state_names = ("sum",)
    torch_options: ClassVar = {"lr_decay": 0, "maximize": False}

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        *,
        fused: bool = True,
        stochastic_rounding: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "eps": eps}
        super().__init__(
            params,
            defaults,
            fused=fused,
            stochastic_rounding=stochastic_rounding,
            seed=seed,
            fill=initial_accumulator_value,
        )
