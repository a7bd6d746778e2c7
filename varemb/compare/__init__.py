"""`varemb compare`: methods, models and seeds in one table, a run folder per cell."""

from varemb.compare.cells import Grid
from varemb.compare.methods import METHODS, all_configs, own_fields, setting_option
from varemb.compare.order import Comparison
from varemb.compare.ranking import RankingComparison, run_ranking
from varemb.compare.ranking_methods import (
    RANKING_METHODS,
    config_of,
    pairwise_option,
    ranking_configs,
    ranking_option,
)
from varemb.compare.run import run_compare

__all__ = [
    "METHODS",
    "RANKING_METHODS",
    "Comparison",
    "Grid",
    "RankingComparison",
    "all_configs",
    "config_of",
    "own_fields",
    "pairwise_option",
    "ranking_configs",
    "ranking_option",
    "run_compare",
    "run_ranking",
    "setting_option",
]
