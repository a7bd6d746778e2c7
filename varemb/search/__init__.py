"""Searches for the dims of embedding rows, and the training that compares them.

Names without a docstring of their own:

- `MakeModel`: takes an embedding, ids [B, F] -> [B, F, D], and returns the model around it, ids
  [B, F] -> logits [B]; a search calls it for every model that it trains.
- `MakeTable`: takes nothing and returns a table, ids [B, F] -> [B, F, D], with new weights.
- `VARIANTS`: AutoDim's variants (X. Zhao et al., WWW 2021), ad-1 to ad-4: name -> whether the
  candidates of a field share a row, and how they reach the width, "pad" or "linear".
"""

from varemb.search.autodim import AutoDim, AutoDimConfig
from varemb.search.autoemb import AutoEmb, AutoEmbConfig
from varemb.search.base import (
    Events,
    EventStream,
    FieldData,
    MakeModel,
    MakeTable,
    SearchResult,
    StoredTable,
    StreamResult,
    TrainResult,
)
from varemb.search.ciess import CIESS
from varemb.search.darts import DARTS, DARTSConfig
from varemb.search.dim_agents import CIESSConfig
from varemb.search.dpq import DPQ, DPQConfig
from varemb.search.esapn import ESAPN, ESAPNConfig
from varemb.search.esapn_ranking import RankingESAPN, RankingESAPNConfig
from varemb.search.fixed_sizes import FixedSizes, FixedSizesConfig
from varemb.search.mde import Mde, MdeConfig
from varemb.search.mgqe import MGQE, MGQEConfig
from varemb.search.nis import NIS, NISConfig
from varemb.search.optembed import OptEmbed, OptEmbedConfig
from varemb.search.optembed_ranking import RankingOptEmbed, RankingOptEmbedConfig
from varemb.search.pairwise import PairData, PairwiseConfig, Recommender
from varemb.search.pep import PEP, PEPConfig
from varemb.search.pep_ranking import RankingPEP, RankingPEPConfig
from varemb.search.ras import RandomSearch, RasConfig
from varemb.search.retraining import LevelResult, RankingResult
from varemb.search.scall import SCALL
from varemb.search.scall_config import SCALLConfig
from varemb.search.stream_fixed import StreamFixed, StreamFixedConfig
from varemb.search.stream_soft import (
    StreamAutoEmb,
    StreamAutoEmbConfig,
    StreamDARTS,
    StreamDARTSConfig,
)
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
    "CIESS",
    "DARTS",
    "DPQ",
    "ESAPN",
    "MGQE",
    "NIS",
    "PEP",
    "SCALL",
    "VARIANTS",
    "AutoDim",
    "AutoDimConfig",
    "AutoEmb",
    "AutoEmbConfig",
    "CIESSConfig",
    "DARTSConfig",
    "DPQConfig",
    "ESAPNConfig",
    "EventStream",
    "Events",
    "FieldData",
    "FixedSizes",
    "FixedSizesConfig",
    "LevelResult",
    "MGQEConfig",
    "MakeModel",
    "MakeTable",
    "Mde",
    "MdeConfig",
    "NISConfig",
    "OptEmbed",
    "OptEmbedConfig",
    "PEPConfig",
    "PairData",
    "PairwiseConfig",
    "RandomSearch",
    "RankingESAPN",
    "RankingESAPNConfig",
    "RankingOptEmbed",
    "RankingOptEmbedConfig",
    "RankingPEP",
    "RankingPEPConfig",
    "RankingResult",
    "RasConfig",
    "Recommender",
    "SCALLConfig",
    "SearchResult",
    "StoredTable",
    "StreamAutoEmb",
    "StreamAutoEmbConfig",
    "StreamDARTS",
    "StreamDARTSConfig",
    "StreamFixed",
    "StreamFixedConfig",
    "StreamResult",
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
