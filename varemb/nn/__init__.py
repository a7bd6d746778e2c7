"""Modules that stand in for torch.nn's."""

from varemb.nn.embedding import VarEmbedding
from varemb.nn.embedding_bag import VarEmbeddingBag

__all__ = ["VarEmbedding", "VarEmbeddingBag"]
