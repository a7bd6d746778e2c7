"""FIXED: every row of a stream is equally wide, a baseline of ESAPN (Section 3.3).

The published code has rows of 222 numbers that enter the recommender as they are, where the paper
says 128. `normalise` brings them through the normalisation and tanh that ESAPN's rows go through:
with a width of 128 that is ESAPN with all rows at the largest size from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.optim import Adam
from varemb.search.settings import check_positive, option
from varemb.search.stream_events import StreamConfig, check_stream_config, num_outputs
from varemb.search.stream_learner import Learner, Learnt, Pair, descend
from varemb.search.stream_method import StreamMethod
from varemb.search.stream_model import Inference, SideNorm, flat_parameter
from varemb.search.stream_side import Side
from varemb.search.training import seeded_from


@dataclass(frozen=True)
class StreamFixedConfig(StreamConfig):
    """Settings of the baseline."""

    dim: int = option(128, "numbers of every row")
    normalise: bool = option(False, "normalise rows and take their tanh, as ESAPN does")


class FixedLearner(Learner):
    """The recommender of one stream.

    Args:
        config: the settings, checked.
    """

    history = None

    def __init__(self, config: StreamFixedConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        with seeded_from(self.generator):
            tables = [VarEmbedding(0, config.dim, resizable=True) for _ in range(2)]
            self.norm = SideNorm(1, config.dim) if config.normalise else None
            self.inference = Inference(config.dim, config.hidden, num_outputs(config))
        self.sides = Side(tables[0], config.dim), Side(tables[1], config.dim)
        model = nn.ModuleList([self.inference] + ([] if self.norm is None else [self.norm]))
        self.modules = {"model": model}
        self.optimizers = {
            "tables": Adam([table.weight for table in tables], config.table_lr),
            "model": torch.optim.Adam([flat_parameter(model)], config.lr, fused=True),
        }

    def learn(self, seen: Pair, labels: Tensor) -> Learnt:
        x = torch.cat([side.table(each.rows) for side, each in zip(self.sides, seen, strict=True)])
        if self.norm is not None:
            side = torch.arange(2).repeat_interleave(len(labels))
            x = self.norm(x, side, track=True)
        logits = self.inference(x, track=True)
        lost = descend(logits, labels, list(self.optimizers.values()))
        return Learnt(logits, lost, np.full((2, len(labels)), self.config.dim))


class StreamFixed(StreamMethod[StreamFixedConfig]):
    """FIXED, a baseline of ESAPN (H. Liu et al., SIGIR 2020): a stream with rows of one width.

    Args:
        config: its settings.

    Example:
        >>> StreamFixed(StreamFixedConfig()).config.dim
        128
    """

    name = "FIXED"

    def _make_learner(self) -> FixedLearner:
        check_fixed(self.config)
        return FixedLearner(self.config)


def check_fixed(config: StreamFixedConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_stream_config("FIXED", config)
    check_positive("FIXED", config, "dim")
