"""Recommenders: of clicks, fields of ids [B, F] in and logits [B] out; and for rankings."""

from varemb.models.autoint import AutoInt
from varemb.models.deepfm import DeepFM
from varemb.models.fm import FM
from varemb.models.ipnn import IPNN
from varemb.models.lightgcn import LightGCN
from varemb.models.mf import MF
from varemb.models.ncf import NCF
from varemb.models.nfm import NFM
from varemb.models.ngcf import NGCF
from varemb.models.recommender import RECOMMENDERS, TRAININGS, DotRecommender, prepare_recommender
from varemb.models.wide_deep import WideDeep

__all__ = [
    "FM",
    "IPNN",
    "MF",
    "NCF",
    "NFM",
    "NGCF",
    "RECOMMENDERS",
    "TRAININGS",
    "AutoInt",
    "DeepFM",
    "DotRecommender",
    "LightGCN",
    "WideDeep",
    "prepare_recommender",
]
