"""`varemb compare`: methods, models and seeds in one table, a run folder per cell."""

from varemb.compare.cells import Grid
from varemb.compare.methods import METHODS, all_configs, own_fields, setting_option
from varemb.compare.order import Comparison
from varemb.compare.run import run_compare

__all__ = [
    "METHODS",
    "Comparison",
    "Grid",
    "all_configs",
    "own_fields",
    "run_compare",
    "setting_option",
]
