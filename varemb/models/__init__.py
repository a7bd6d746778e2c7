"""Recommenders over fields of categorical ids: [B, F] ids in, [B] logits out."""

from varemb.models.wide_deep import WideDeep

__all__ = ["WideDeep"]
