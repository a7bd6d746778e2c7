"""Data sets for click-through models: rows of categorical ids with a label 0 or 1."""

from varemb.data.avazu import avazu_vocabulary, encode_avazu, load_avazu
from varemb.data.base import ClickData, open_encoded
from varemb.data.clicks import PLANTED_DIMS, planted_clicks
from varemb.data.criteo import criteo_vocabulary, encode_criteo, load_criteo
from varemb.data.movielens import load_ml1m
from varemb.data.vocabulary import Vocabulary

__all__ = [
    "PLANTED_DIMS",
    "ClickData",
    "Vocabulary",
    "avazu_vocabulary",
    "criteo_vocabulary",
    "encode_avazu",
    "encode_criteo",
    "load_avazu",
    "load_criteo",
    "load_ml1m",
    "open_encoded",
    "planted_clicks",
]
