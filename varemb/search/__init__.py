"""Searches for the dims of embedding rows, and the training that compares them."""

from varemb.search.autodim import AutoDim, AutoDimConfig
from varemb.search.base import (
    FieldData,
    MakeModel,
    MakeTable,
    SearchResult,
    StoredTable,
    TrainResult,
)
from varemb.search.mde import Mde, MdeConfig
from varemb.search.pep import PEP, PEPConfig
from varemb.search.ras import RandomSearch, RasConfig
from varemb.search.supernet import VARIANTS
from varemb.search.training import (
    TrainConfig,
    evaluate,
    measure_trained,
    train_model,
    train_plan,
    train_table,
)
from varemb.search.uniform import Uniform, UniformConfig

__all__ = [
    "PEP",
    "VARIANTS",
    "AutoDim",
    "AutoDimConfig",
    "FieldData",
    "MakeModel",
    "MakeTable",
    "Mde",
    "MdeConfig",
    "PEPConfig",
    "RandomSearch",
    "RasConfig",
    "SearchResult",
    "StoredTable",
    "TrainConfig",
    "TrainResult",
    "Uniform",
    "UniformConfig",
    "evaluate",
    "measure_trained",
    "train_model",
    "train_plan",
    "train_table",
]
