"""Data sets for click-through models: rows of categorical ids with a label 0 or 1."""

from varemb.data.base import ClickData
from varemb.data.clicks import PLANTED_DIMS, planted_clicks
from varemb.data.movielens import load_ml1m

__all__ = ["PLANTED_DIMS", "ClickData", "load_ml1m", "planted_clicks"]
