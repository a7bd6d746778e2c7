"""Recommenders over fields of categorical ids: [B, F] ids in, [B] logits out."""

from varemb.models.autoint import AutoInt
from varemb.models.deepfm import DeepFM
from varemb.models.fm import FM
from varemb.models.ipnn import IPNN
from varemb.models.nfm import NFM
from varemb.models.wide_deep import WideDeep

__all__ = ["FM", "IPNN", "NFM", "AutoInt", "DeepFM", "WideDeep"]
