"""RaS: random search over one dim per field.

The baseline of X. Zhao et al., *AutoDim*, WWW 2021 (arXiv 2006.14827), Section 4.1: T plans

    d_m ~ uniform over D, independently for each field m

are each trained fully, and the one with the best validation AUC is kept. The paper does not say
how many; a plan drawn twice is trained once, so T counts distinct plans as far as there are any.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from torch import nn

from varemb.nn import VarEmbedding
from varemb.plan import SizePlan
from varemb.search.base import FieldData, MakeModel, MakeTable, SearchResult
from varemb.search.settings import check_candidates, check_positive, option
from varemb.search.training import TrainConfig
from varemb.search.trials import train_trials


@dataclass(frozen=True)
class RasConfig:
    """Settings of the search."""

    candidates: tuple[int, ...] = option((2, 8, 16, 24, 32), "D: the dims to draw from")
    trials: int = option(10, "T: plans that are trained")
    training: TrainConfig = field(
        default_factory=TrainConfig, metadata={"help": "how each of them is trained"}
    )
    seed: int = option(0, "of the plans")


class RandomSearch:
    """RaS, a baseline of AutoDim (X. Zhao et al., WWW 2021): the best of T random plans.

    Args:
        config: its settings.

    Example:
        >>> RandomSearch(RasConfig(trials=5)).config.candidates
        (2, 8, 16, 24, 32)
    """

    def __init__(self, config: RasConfig) -> None:
        self.config = config

    def fit(
        self,
        make_model: MakeModel,
        train: FieldData,
        valid: FieldData,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> SearchResult:
        """The best of T random plans.

        Args: as of every search; each trial has a checkpoint of its own.

        Returns:
            The plan, a table per field, and its validation AUC.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.

        Deterministic: yes, from config.seed and config.training.seed.
        """
        config = self.config
        plans = draw_plans(config, train)

        def table_of(plan: SizePlan) -> MakeTable:
            def make_table() -> nn.Module:
                width = config.candidates[-1]
                table = VarEmbedding.for_fields(train.cardinalities, width, plan, unify="linear")
                nn.init.normal_(table.weight, std=config.training.init_std)
                return table

            return make_table

        trials = train_trials(
            "ras", make_model, [table_of(plan) for plan in plans], train, valid, config.training,
            progress=progress, checkpoint_dir=checkpoint_dir, resume=resume,
        )  # fmt: skip
        best = trials.best
        return SearchResult(plans[best], trials.valid[best]["auc"], trials.history, trials.seconds)


def draw_plans(config: RasConfig, data: FieldData) -> list[SizePlan]:
    """T distinct plans, or all there are if those are fewer.

    Raises:
        ValueError: candidates that are not positive and increasing, or fewer than one trial.
    """
    check_ras(config)
    candidates = config.candidates
    draw, fields = np.random.default_rng(config.seed), len(data.cardinalities)
    wanted = min(config.trials, len(candidates) ** fields)
    drawn: dict[tuple[int, ...], None] = {}  # a set that keeps the order
    while len(drawn) < wanted:
        drawn[tuple(draw.choice(candidates, fields).tolist())] = None
    rows = dict(zip(data.field_names, data.cardinalities, strict=True))
    return [
        SizePlan.for_fields(rows, candidates[-1], dict(zip(rows, dims, strict=True)))
        for dims in drawn
    ]


def check_ras(config: RasConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_candidates("RaS", config.candidates)
    check_positive("RaS", config, "trials")
