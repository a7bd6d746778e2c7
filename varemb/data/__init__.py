"""Data sets: rows of ids with a label 0 or 1, streams of users who meet items, and purchases."""

from varemb.data.avazu import avazu_vocabulary, encode_avazu, load_avazu
from varemb.data.base import ClickData, open_encoded
from varemb.data.clicks import PLANTED_DIMS, planted_clicks
from varemb.data.criteo import criteo_vocabulary, encode_criteo, load_criteo
from varemb.data.events import EventStream, live_batches
from varemb.data.interactions import (
    INTERACTIONS,
    Interactions,
    Pairs,
    Split,
    load_interactions,
    read_edge_lists,
    read_interactions,
)
from varemb.data.movielens import load_ml1m
from varemb.data.streams import (
    ORDERS,
    STREAMS,
    EventColumns,
    load_stream,
    load_stream_file,
    read_events,
)
from varemb.data.vocabulary import Vocabulary

__all__ = [
    "INTERACTIONS",
    "ORDERS",
    "PLANTED_DIMS",
    "STREAMS",
    "ClickData",
    "EventColumns",
    "EventStream",
    "Interactions",
    "Pairs",
    "Split",
    "Vocabulary",
    "avazu_vocabulary",
    "criteo_vocabulary",
    "encode_avazu",
    "encode_criteo",
    "live_batches",
    "load_avazu",
    "load_criteo",
    "load_interactions",
    "load_ml1m",
    "load_stream",
    "load_stream_file",
    "open_encoded",
    "planted_clicks",
    "read_edge_lists",
    "read_events",
    "read_interactions",
]
