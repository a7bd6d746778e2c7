"""Embedding tables for PyTorch in which every row has its own width, stored for real."""

from varemb import optim, search
from varemb.convert import convert
from varemb.info import build_info
from varemb.memory import MemoryReport, memory_report
from varemb.nn import VarEmbedding, VarEmbeddingBag
from varemb.plan import SizePlan

__version__ = "0.1.0"

__all__ = [
    "MemoryReport",
    "SizePlan",
    "VarEmbedding",
    "VarEmbeddingBag",
    "__version__",
    "build_info",
    "convert",
    "memory_report",
    "optim",
    "search",
]
