"""Dims that are not searched, under a sparsity: what CIESS is compared with.

- "es", equal sizes: every row has floor((1 - c) D) numbers, and some have one more;
- "mr", mixed and random: every row's dim is uniform, with that mean;
- "frequency": dims in proportion to how many training pairs a row has, 1 to D.

DIFFERS: all take all the numbers that a sparsity allows, as CIESS does, so that equal numbers are
    compared: ES would have 12 numbers a row at 90 %, where there are 12.8. `is_full` off leaves
    them as published, but for MR's dims, which are cut, a number at a time, until the sparsity
    holds; the published code draws with a mean half a number above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varemb.budget import fill_budget
from varemb.search.pairwise import PairData, PairwiseConfig, Prepare, Trainer
from varemb.search.retraining import (
    RankingResult,
    measure_levels,
    open_progress,
    plan_candidate,
)
from varemb.search.settings import option
from varemb.search.sparsity import (
    Dims,
    allowed_numbers,
    check_distinct,
    equal_dims,
    fit_dims,
    random_dims,
)

METHODS = ("es", "mr", "frequency")


@dataclass(frozen=True)
class FixedSizesConfig:
    """Which dims."""

    method: str = option("es", "es (equal), mr (random) or frequency")
    width: int = option(128, "D, the widest row")
    sparsities: tuple[float, ...] = option((0.8, 0.9, 0.95), "c: shares of the numbers left out")
    unit: str = option("numbers", "what a sparsity counts: numbers, or bytes with the index")
    is_full: bool = option(True, "give rows the numbers that rounding leaves over")
    seed: int = option(0, "of all randomness")


class FixedSizes:
    """ES, MR and frequency, baselines of CIESS (Y. Qu et al., SIGIR 2023): nothing is searched.

    Args:
        config: its settings.

    Example:
        >>> FixedSizes(FixedSizesConfig(method="mr")).config.sparsities
        (0.8, 0.9, 0.95)
    """

    def __init__(self, config: FixedSizesConfig) -> None:
        self.config = config

    def fit(
        self,
        data: PairData,
        prepare: Prepare,
        training: PairwiseConfig,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> RankingResult:
        """Tables with these dims, trained fully; arguments and errors are those of CIESS.fit."""
        config = self.config
        check_fixed_sizes(config)
        dims = {c: self._dims(data, c) for c in config.sparsities}
        candidates = {
            c: [plan_candidate(each, data.num_users, config.width)] for c, each in dims.items()
        }
        trainer = Trainer.of_search(prepare, data, training, config.seed)
        kept, _ = open_progress(config.method, config, trainer, data, checkpoint_dir, resume=resume)
        return measure_levels(
            candidates, data, prepare, trainer, training, config.width, config.seed,
            lambda quality: quality.mean, kept, progress=progress,
        )  # fmt: skip

    def _dims(self, data: PairData, sparsity: float) -> Dims:
        config, rows = self.config, data.num_users + data.num_items
        numbers = allowed_numbers(rows, config.width, sparsity, config.unit)
        if config.method == "frequency":
            users, items = data.train
            counts = np.concatenate([
                np.bincount(users, minlength=data.num_users),
                np.bincount(items, minlength=data.num_items),
            ])  # fmt: skip
            return fill_budget(counts.astype(float), np.full(rows, config.width), numbers)
        if config.method == "es":
            return equal_dims(rows, numbers, config.seed if config.is_full else None)
        dims = random_dims(rows, config.width, sparsity, numbers, config.seed)
        return fit_dims(dims, config.width, numbers) if config.is_full else dims


def check_fixed_sizes(config: FixedSizesConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    if config.method not in METHODS:
        raise ValueError(
            f"fixed sizes: the method must be one of {', '.join(METHODS)}, got {config.method!r}"
        )
    check_distinct("fixed sizes", config.sparsities)
