"""Every row has the same dim: the full width (FDE), or what a budget of numbers allows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from varemb.budget import fill_budget
from varemb.plan import SizePlan
from varemb.rows import granule_for, units_of
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.settings import check_positive, check_share, option


@dataclass(frozen=True)
class UniformConfig:
    """How wide, and how many numbers in all."""

    width: int = option(32, "D, the width of the model's input")
    share: float = option(1.0, "share of the full width's numbers; 1 is FDE")
    numbers: int = option(0, "numbers in all, instead of a share; 0 takes the share")
    seed: int = option(0, "nothing is random here")


class Uniform:
    """FDE and uniform, baselines of AutoDim (X. Zhao et al., WWW 2021): one dim for all rows.

    At full width this is FDE. A budget of E numbers over N rows gives dim floor(E / N), and one
    more to the first E - N floor(E / N) rows, so that it is met exactly; above a width of 255 dims
    are multiples of what tables round up to, and less than one of these is left over. Rows are
    zero-padded: that is the plain narrow table that a user would take instead.

    Args:
        config: its settings.

    Example:
        >>> Uniform(UniformConfig(width=16)).config.share
        1.0
    """

    def __init__(self, config: UniformConfig) -> None:
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
        """The plan at once; the arguments are those of every search.

        Returns:
            The plan, with a score of NaN: no model was trained.

        Raises:
            ValueError: the budget does not give every row a number, or is above the full width.
        """
        check_uniform(self.config)
        config, rows = self.config, sum(train.cardinalities)
        granule = granule_for(config.width)
        least, full = rows * granule, rows * granule * units_of(config.width, granule)
        numbers = config.numbers or math.floor(config.share * full)
        if not least <= numbers <= full:
            raise ValueError(
                f"uniform: {rows:,} rows of at most {config.width} numbers take {least:,} to "
                f"{full:,} numbers, got {numbers:,}"
            )
        caps = np.full(rows, config.width)
        dims = fill_budget(np.ones(rows), caps, numbers, power=0, granules=granule)
        ends = np.cumsum(train.cardinalities)[:-1]
        tables = dict(zip(train.field_names, np.split(dims, ends), strict=True))
        plan = SizePlan(tables, config.width)
        return SearchResult(plan, math.nan, [], 0.0, unify="pad")


def check_uniform(config: UniformConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("uniform", config, "width")
    check_share("uniform", config, "share")
    if config.numbers < 0:
        raise ValueError(f"uniform: numbers must be at least 0, got {config.numbers}")
