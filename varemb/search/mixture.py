"""A table whose rows are soft mixtures of candidate widths, and its training: DARTS and AutoEmb.

Every row keeps d_n numbers for each candidate n, T = sum_n d_n in all, and weights p choose softly:

    x = sum_n p_n tanh(BN(e_n W_n)),   e_n [d_n], W_n [d_n, D] of the row's field

The choice is never made hard: the trained model is the result, and it is served with all T numbers
of a row, which is more than the D of the full width.

W and the table move on training batches, what makes p on validation batches, one per f training
batches (first order). The epoch is chosen on these rows as well, of which the result has therefore
seen more than that of a method whose plan is trained again; the running mean and variance of BN,
by which it is served, have seen their inputs too.

DIFFERS: BN has no scale and shift; ESAPN's code, where this comes from, has both.
"""

from __future__ import annotations

import abc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.ops import field_rows
from varemb.search.base import FieldData, MakeModel, SearchResult, TrainResult
from varemb.search.epochs import Epochs, first_rows, gradient_step, logloss, open_checkpoint
from varemb.search.settings import check_candidates, check_positive, option
from varemb.search.statistics import first_share
from varemb.search.training import evaluate, seeded_from, split_tables


@dataclass(frozen=True)
class MixtureConfig:
    """Settings that soft methods share; the symbols are AutoDim's."""

    candidates: tuple[int, ...] = option((2, 8, 16, 24, 32), "the dims that are mixed")
    f: int = option(10, "f: training batches per validation batch")
    selector_lr: float = option(0.01, "learning rate of what makes the weights p")
    max_epochs: int = option(16, "epochs at most; the learning rate is planned for all of them")
    patience: int = option(4, "epochs in a row without a better validation AUC")
    batch_size: int = option(2000, "rows of a batch")
    lr: float = option(0.001, "learning rate at the first step; it falls linearly to 0")
    weight_decay: float = option(3e-3, "L2 of the tables")
    init_std: float = option(0.01, "of the table's first numbers")
    seed: int = option(0, "of all randomness")


class Selector(nn.Module, abc.ABC):
    """Weights p of the candidates for each row."""

    @abc.abstractmethod
    def forward(self, rows: Tensor) -> Tensor:  # [B, F] -> [B, F, N]
        """The weights, which sum to 1."""

    @abc.abstractmethod
    def weights(self) -> dict[str, Tensor]:
        """What is stored per row or group of rows to have p, as numbers."""

    @abc.abstractmethod
    def index(self) -> dict[str, Tensor]:
        """What says which of those numbers are a row's."""


class MixtureTable(nn.Module):
    """Rows as soft mixtures of candidate widths. [B, F] -> [B, F, D]

    Args:
        cardinalities: rows of each field. [F]
        candidates: increasing dims d_n; the last is D. [N]
        init_std: of the table's first numbers.
        selector: makes p.

    Attributes:
        table: all candidates' numbers, T to a row.
        matrices: W_n of every field. N parameters [F, d_n, D]
    """

    field_starts: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        candidates: Sequence[int],
        init_std: float,
        selector: Selector,
    ) -> None:
        super().__init__()
        fields, width = len(cardinalities), candidates[-1]
        self.candidates = list(candidates)
        self.table = VarEmbedding.for_fields(list(cardinalities), sum(candidates))
        nn.init.normal_(self.table.weight, std=init_std)
        self.matrices = nn.ParameterList(
            (torch.rand(fields, dim, width) * 2 - 1) / math.sqrt(dim) for dim in candidates
        )
        # No bias: the normalisation takes the mean away again.
        self.norms = nn.ModuleList(nn.BatchNorm1d(fields * width, affine=False) for _ in candidates)
        self.selector = selector
        self.register_buffer("field_starts", first_rows(cardinalities), persistent=False)

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        p = self.selector(field_rows(ids, self.field_starts))  # [B, F, N]
        parts = self.table(ids).transpose(0, 1).split(self.candidates, 2)  # N times [F, B, d_n]
        out = torch.zeros(())
        for n, (e, w, norm) in enumerate(zip(parts, self.matrices, self.norms, strict=True)):
            assert isinstance(norm, nn.BatchNorm1d) and norm.num_batches_tracked is not None
            norm.momentum = float(first_share(norm.num_batches_tracked + 1))
            z = norm((e @ w).transpose(0, 1).flatten(1)).view(*ids.shape, -1)
            out = out + p[..., n, None] * torch.tanh(z)
        return out

    @property
    def num_params(self) -> int:
        """Numbers of all rows, T each; matrices and what makes p aside."""
        return self.table.weight.numel()

    def stored(self) -> dict[str, Tensor]:
        statistics = dict(self.norms.named_buffers())
        return {
            "table": self.table.weight.detach(),
            "table_index": self.table.storage.rows.index,
            "field_starts": self.field_starts,
            **{f"matrix_{n}": w.detach() for n, w in enumerate(self.matrices)},
            **{f"norm_{n}": s for n, s in statistics.items() if "running" in n},
            **self.selector.weights(),
            **self.selector.index(),
        }

    def num_bytes(self) -> dict[str, int]:
        sizes = {name: tensor.nbytes for name, tensor in self.stored().items()}
        weights = sum(sizes.pop(name) for name in ("table", *self.selector.weights()))
        places = ("table_index", "field_starts", *self.selector.index())
        index = sum(sizes.pop(name) for name in places)
        return {"weights": weights, "index": index, "unify": sum(sizes.values())}


def fit_mixture(
    method: str,
    config: MixtureConfig,
    selector: Selector,
    make_model: MakeModel,
    train: FieldData,
    valid: FieldData,
    *,
    progress: bool,
    checkpoint_dir: Path | None,
    resume: bool,
) -> SearchResult:
    """The trained model, with the weights of the epoch that had the best validation AUC.

    Args:
        method: its name, for messages and the checkpoint.
        selector: new, on the rows of `train`.
    """
    generator = torch.Generator().manual_seed(config.seed)
    with seeded_from(generator):
        table = MixtureTable(train.cardinalities, config.candidates, config.init_std, selector)
        model = make_model(table)
    adam = _make_adam(model, table, config)
    run = Epochs(model, [adam], generator)
    run.kept |= {"best": {}, "best_valid": {"auc": -math.inf}, "bad": 0, "trained": 0.0}

    def run_epoch(epoch: int) -> dict[str, Any]:
        return _train(run, table, config, train, valid, epoch, progress=progress)

    file = open_checkpoint(checkpoint_dir, method.lower(), config, train, valid)
    run.run(run_epoch, config.max_epochs, file, resume)
    model.load_state_dict(run.kept["best"])
    best = run.kept["best_valid"]
    size = min(config.batch_size, len(train.labels))
    seen = len(run.history) * (len(train.labels) // size) * size
    rate = seen / max(run.kept["trained"], 1e-9)
    trained = TrainResult(model, adam, best, run.history, run.seconds, rate)
    return SearchResult(None, best["auc"], run.history, run.seconds, trained=trained, table=table)


def check_mixture(method: str, config: MixtureConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_candidates(method, config.candidates)
    check_positive(method, config, "f", "max_epochs", "patience", "batch_size")


def _make_adam(model: nn.Module, table: MixtureTable, config: MixtureConfig) -> torch.optim.Adam:
    """Groups: tables with weight decay, everything else, and what makes p."""
    selected = list(table.selector.parameters())
    matrices = list(table.matrices)
    apart = {id(parameter) for parameter in [*selected, *matrices]}
    tables, others = split_tables(model)
    groups: list[dict[str, Any]] = [
        {"params": [p for p in tables if id(p) not in apart], "weight_decay": config.weight_decay},
        {"params": [*matrices, *(p for p in others if id(p) not in apart)]},
        {"params": selected, "lr": config.selector_lr},
    ]
    return torch.optim.Adam(groups, lr=config.lr, fused=True)


def _train(
    run: Epochs,
    table: MixtureTable,
    config: MixtureConfig,
    train: FieldData,
    valid: FieldData,
    epoch: int,
    *,
    progress: bool,
) -> dict[str, Any]:
    """One epoch on the training rows, and one step for p per f of its batches."""
    (adam,) = run.optimizers
    weights = [p for group in adam.param_groups[:2] for p in group["params"]]
    selected = list(adam.param_groups[2]["params"])
    batches = len(train.labels) // min(config.batch_size, len(train.labels))
    losses: list[float] = []
    start = time.perf_counter()
    run.model.train()
    for rows in run.batches(train, config.batch_size, f"train, epoch {epoch}", progress=progress):
        step = (epoch - 1) * batches + len(losses)
        for group in adam.param_groups[:2]:
            group["lr"] = config.lr * (1 - step / (config.max_epochs * batches))
        if step % config.f == 0:
            others = run.next_rows(valid, config.batch_size)
            gradient_step(logloss(run.model, valid, others), run.optimizers, only=selected)
        losses.append(gradient_step(logloss(run.model, train, rows), run.optimizers, only=weights))
    kept, scores = run.kept, evaluate(run.model, valid)
    kept["trained"] += time.perf_counter() - start
    kept["bad"] += 1
    if scores["auc"] > kept["best_valid"]["auc"]:
        best = {name: value.clone() for name, value in run.model.state_dict().items()}
        kept |= {"best": best, "best_valid": scores, "bad": 0}
    kept["is_done"] = kept["bad"] >= config.patience
    with torch.no_grad():
        p = table.selector(torch.arange(int(table.field_starts[-1]))[:, None])[:, 0]
    mean = [part.mean(0).tolist() for part in p.split(table.field_starts.diff().tolist())]
    return {
        "phase": "train",
        "epoch": epoch,
        "train_loss": sum(losses) / len(losses),
        "valid": scores,
        "p": dict(zip(train.field_names, mean, strict=True)),
    }
