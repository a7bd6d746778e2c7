"""DARTS and AutoEmb on a stream, rows that mix all sizes: baselines of ESAPN (Section 3.3).

Every row has numbers for each size d_k, T = sum of d_k in all, and weights p mix them softly:

    x = sum_k p_k tanh(BN(W_k e_k + b_k)),   e_k [d_k], W_k and b_k of the row's side

DARTS: p = softmax of six logits of the row's own, equal at first. AutoEmb (arXiv 2002.11252): p =
softmax of a controller that sees how often the row occurred and the p it had last.

Before a batch is predicted, what makes p learns from past events by the same loss; tables and
matrices then learn from the batch itself.

DIFFERS: BN has one affine part per side, as in the published code, and statistics per size.
With `validation="uniform"` past events are drawn as ESAPN does; the published code takes the batch
before, and so does the default.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.nn import VarEmbedding
from varemb.optim import Adam
from varemb.search.settings import check_candidates, check_choice, check_positive, option
from varemb.search.stream_events import Ids, StreamConfig, check_stream_config, num_outputs
from varemb.search.stream_history import SAMPLERS, History
from varemb.search.stream_learner import Learner, Learnt, Pair, descend
from varemb.search.stream_method import StreamMethod
from varemb.search.stream_model import Inference, Policy, batch_norm, flat_parameter, tanh
from varemb.search.stream_side import Column, Side
from varemb.search.training import seeded_from
from varemb.storage import tensors_of


@dataclass(frozen=True)
class StreamSoftConfig(StreamConfig):
    """Settings that both methods share."""

    sizes: tuple[int, ...] = option((2, 4, 8, 16, 64, 128), "D: sizes that are mixed")
    validation: str = option("last_batch", "past events: uniform over the past, or last_batch")
    kept_events: int = option(100_000, "events of the past that uniform ones are drawn from")
    policy_lr: float = option(0.0001, "learning rate of what makes the weights p")


@dataclass(frozen=True)
class StreamDARTSConfig(StreamSoftConfig):
    """Settings of DARTS."""


@dataclass(frozen=True)
class StreamAutoEmbConfig(StreamSoftConfig):
    """Settings of AutoEmb."""

    most_frequent: int = option(1000, "frequencies above it are the same to the controllers")


class Mixing(nn.Module):
    """Parts of a side's rows, each brought to the width, normalised and mixed.

    Args:
        sizes: d_k, the last is D. [K]
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes, width = list(sizes), sizes[-1]
        self.maps = nn.ModuleList(nn.Linear(d, width) for d in sizes)
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.norm = nn.BatchNorm1d(len(sizes) * width, affine=False)

    def forward(self, x: Tensor, p: Tensor, *, track: bool) -> Tensor:  # -> [B, D]
        """Mixed rows.

        Args:
            x: [B, T]
            p: [B, K]
            track: let the running statistics follow.
        """
        parts = zip(self.maps, x.split(self.sizes, 1), strict=True)
        z = torch.cat([linear(part) for linear, part in parts], 1)  # [B, K D]
        z = batch_norm(z, self.norm, track=track).view(*p.shape, -1)
        z = tanh(torch.addcmul(self.bias, z, self.weight))
        return torch.bmm(p[:, None], z)[:, 0]


def check_stream_darts(config: StreamDARTSConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    _check("DARTS", config)


def check_stream_autoemb(config: StreamAutoEmbConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    _check("AutoEmb", config)
    check_positive("AutoEmb", config, "most_frequent")


def _check(method: str, config: StreamSoftConfig) -> None:
    check_stream_config(method, config)
    check_candidates(method, config.sizes, "sizes")
    check_choice(method, config, "validation", SAMPLERS)
    check_positive(method, config, "kept_events")


class SoftLearner(Learner, abc.ABC):
    """What DARTS and AutoEmb share.

    Args:
        config: the settings, checked.
    """

    chooser, is_served = "chooser", True
    history: History
    config: StreamSoftConfig
    columns: ClassVar[tuple[str, ...]] = ()  # per row: a number for each size

    def __init__(self, config: StreamSoftConfig) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(config.seed)
        width, total = config.sizes[-1], sum(config.sizes)
        columns: dict[str, Column] = dict.fromkeys(self.columns, (np.float32, (len(config.sizes),)))
        with seeded_from(self.generator):
            tables = [VarEmbedding(0, total, resizable=True) for _ in range(2)]
            self.mixing = nn.ModuleList(Mixing(config.sizes) for _ in range(2))
            self.inference = Inference(width, config.hidden, num_outputs(config))
            chooser, choosing = self.make_chooser(config)
        self.sides = Side(tables[0], total, columns), Side(tables[1], total, columns)
        model = nn.ModuleList([self.mixing, self.inference])
        self.modules = {"model": model, "chooser": chooser}
        self.optimizers = {
            "tables": Adam([table.weight for table in tables], config.table_lr),
            "model": torch.optim.Adam([flat_parameter(model)], config.lr, fused=True),
            "chooser": choosing,
        }
        self.history = History(config.validation, config.kept_events, self.generator)

    def unify_nbytes(self) -> int:
        """Bytes of the maps to the width, and of what makes p."""
        parts = [*(each.maps for each in self.mixing.children()), self.modules["chooser"]]
        tensors = [tensor for part in parts for tensor in tensors_of(part)]  # type: ignore[arg-type]
        return sum(tensor.nbytes for tensor in tensors) + self.column_nbytes()

    def column_nbytes(self) -> int:
        """Bytes of the rows' last p, where it is kept."""
        columns = [side.column(name) for side in self.sides for name in self.columns]
        return sum(column.nbytes for column in columns)

    @abc.abstractmethod
    def make_chooser(self, config: StreamSoftConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        """What makes p, and its optimizer."""

    @abc.abstractmethod
    def weights(self, number: int, rows: Tensor, frequency: Ids) -> Tensor:  # [B] -> [B, K]
        """p of rows of a side, differentiable in what makes it."""

    @abc.abstractmethod
    def keep(self, seen: Pair, p: Sequence[Tensor]) -> None:
        """Keeps what p of a learnt batch leaves behind."""

    def learn(self, seen: Pair, labels: Tensor) -> Learnt:
        """What makes p learns from the past, then everything else from the batch."""
        if len(self.history):
            self._improve_weights(*self.history.draw(self.config.batch_size))
        rows = torch.stack([each.rows for each in seen])
        with torch.no_grad():
            p = [self.weights(n, each.rows, each.frequency) for n, each in enumerate(seen)]
        logits = self._predict(rows, p, track=True)
        lost = descend(logits, labels, [self.optimizers["tables"], self.optimizers["model"]])
        self.keep(seen, p)
        self.history.add(rows, labels)
        return Learnt(logits, lost, np.full(rows.shape, sum(self.config.sizes)))

    def _improve_weights(self, rows: Tensor, labels: Tensor) -> None:
        p = []
        for number, (side, each) in enumerate(zip(self.sides, rows, strict=True)):
            p.append(self.weights(number, each, side.column("seen")[each.numpy()]))
        # The tables, matrices and the recommender see no gradient.
        self.modules["model"].requires_grad_(False)
        descend(self._predict(rows, p, track=False), labels, [self.optimizers["chooser"]])
        self.modules["model"].requires_grad_(True)

    def _predict(self, rows: Tensor, p: Sequence[Tensor], *, track: bool) -> Tensor:  # -> [B, O]
        with torch.set_grad_enabled(track):
            x = [side.table(each) for side, each in zip(self.sides, rows, strict=True)]
        vectors = [self.mixing[n](x[n], p[n], track=track) for n in range(2)]
        logits: Tensor = self.inference(torch.cat(vectors), track=track)
        return logits


class DARTSLearner(SoftLearner):
    """Rows with logits of their own, which stand in tables beside the rows."""

    def make_chooser(self, config: StreamSoftConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        count = len(config.sizes)
        self.logits = [VarEmbedding(0, count, resizable=True) for _ in range(2)]
        adam = Adam([table.weight for table in self.logits], config.policy_lr)
        return nn.ModuleList(self.logits), adam

    def weights(self, number: int, rows: Tensor, frequency: Ids) -> Tensor:
        table = self.logits[number]
        missing = len(self.sides[number]) - table.num_present
        if missing:
            table.extend(missing, len(self.config.sizes), init="zeros")
        return torch.softmax(table(rows), 1)

    def keep(self, seen: Pair, p: Sequence[Tensor]) -> None:
        """Nothing: p is made of the logits alone."""


class AutoEmbLearner(SoftLearner):
    """Rows whose p a controller makes."""

    config: StreamAutoEmbConfig
    columns = ("p",)

    def make_chooser(self, config: StreamSoftConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        count, most = len(config.sizes), self.config.most_frequent
        # At first all on the smallest size; the published code has 1.5 there with five classes.
        self.first = F.one_hot(torch.tensor(0), count) * (1.0 if config.task == "binary" else 1.5)
        controllers = nn.ModuleList(Policy(count, count, config.hidden, most) for _ in range(2))
        adam = torch.optim.Adam([flat_parameter(controllers)], config.policy_lr, fused=True)
        return controllers, adam

    def weights(self, number: int, rows: Tensor, frequency: Ids) -> Tensor:
        before = torch.from_numpy(self.sides[number].column("p")[rows.numpy()])
        state = torch.where(before.sum(1, keepdim=True) == 0, self.first, before)
        controller = self.modules["chooser"].get_submodule(str(number))
        return torch.softmax(controller(torch.from_numpy(frequency), state), 1)

    def keep(self, seen: Pair, p: Sequence[Tensor]) -> None:
        """The weights of each row's last event are its next state."""
        for side, each, chosen in zip(self.sides, seen, p, strict=True):
            side.column("p")[each.distinct] = chosen.numpy()[each.last]


class StreamDARTS(StreamMethod[StreamDARTSConfig]):
    """DARTS (H. Liu et al., ICLR 2019) on a stream: rows mix all sizes by logits of their own.

    Args:
        config: its settings.

    Example:
        >>> sum(StreamDARTS(StreamDARTSConfig()).config.sizes)
        222
    """

    name = "DARTS"

    def _make_learner(self) -> DARTSLearner:
        check_stream_darts(self.config)
        return DARTSLearner(self.config)


class StreamAutoEmb(StreamMethod[StreamAutoEmbConfig]):
    """AutoEmb (X. Zhao et al., ICDM 2021) on a stream: rows mix all sizes as a controller says.

    Args:
        config: its settings.

    Example:
        >>> StreamAutoEmb(StreamAutoEmbConfig()).config.policy_lr
        0.0001
    """

    name = "AutoEmb"

    def _make_learner(self) -> AutoEmbLearner:
        check_stream_autoemb(self.config)
        return AutoEmbLearner(self.config)
