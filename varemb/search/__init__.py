"""Searches for the dims of embedding rows, and the training that compares them."""

from varemb.search.autodim import AutoDim, AutoDimConfig
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.supernet import VARIANTS
from varemb.search.training import TrainConfig, TrainResult, evaluate, train_model, train_plan

__all__ = [
    "VARIANTS",
    "AutoDim",
    "AutoDimConfig",
    "FieldData",
    "MakeModel",
    "SearchResult",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "train_model",
    "train_plan",
]
