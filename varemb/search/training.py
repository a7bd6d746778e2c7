"""Training of one model with given dims: Adam, the best epoch by validation AUC, and the result.

Every method and its full-width baseline (FDE) go through `train_table`, so they are tuned alike.
On MovieLens 1M three settings matter more than the dims: small first numbers of the tables, weight
decay of the tables (rows of rare ids otherwise remember the training labels), and a learning rate
that falls to 0 (with decay, a constant one leaves the tables noisy). Matrices do not decay.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from varemb.memory import memory_report
from varemb.nn import VarEmbedding, VarEmbeddingBag
from varemb.plan import SizePlan
from varemb.search.base import (
    Checkpoint,
    FieldData,
    MakeModel,
    MakeTable,
    StoredTable,
    TrainResult,
    identify_data,
    state_nbytes,
)
from varemb.search.progress import closing, make_bar
from varemb.search.settings import check_positive, check_rates

_EVALUATED_ROWS = 20_000  # rows of one forward without gradient


@dataclass(frozen=True)
class TrainConfig:
    """How one model is trained; the same for a plan and for the full width it is compared with.

    Raises:
        ValueError: a size or a rate that does not fit.
    """

    batch_size: int = 2000
    lr: float = 1e-3  # of Adam at the first step; it falls linearly to 0 at the last
    weight_decay: float = 3e-3  # L2 of the tables, on all their rows at every step
    init_std: float = 0.01  # of the tables' first numbers
    max_epochs: int = 16  # the learning rate is planned for all of them
    patience: int = 4  # epochs in a row without a better validation AUC
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive("training", self, "batch_size", "max_epochs", "patience")
        check_rates("training", self)
        if self.lr == 0:
            raise ValueError("training: lr must be above 0, got 0")


def evaluate(model: nn.Module, data: FieldData) -> dict[str, float]:
    """AUC (ties get their mean rank) and logloss (probabilities cut to [1e-7, 1 - 1e-7]).

    Raises:
        ValueError: the labels are all 0 or all 1, or the model returns NaN.
        ImportError: without the package that computes the AUC.
    """
    try:
        from sklearn.metrics import roc_auc_score
    except ImportError:
        raise ImportError(
            "evaluate: the AUC needs scikit-learn: pip install 'varemb[data]'"
        ) from None
    positives = float(data.labels.sum())
    if not 0 < positives < len(data.labels):
        raise ValueError(
            f"evaluate: AUC needs labels 0 and 1, got {len(data.labels)} rows, {positives:.0f} of 1"
        )
    was_training = model.training
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(ids) for ids in data.ids.split(_EVALUATED_ROWS)])
    model.train(was_training)
    if not logits.isfinite().all():
        raise ValueError("evaluate: the model returns numbers that are not finite")
    # float64: 1 - 1e-7 is no float32
    probabilities = logits.double().sigmoid().clamp(1e-7, 1 - 1e-7)
    return {
        "auc": float(roc_auc_score(data.labels.numpy(), logits.double().sigmoid().numpy())),
        "logloss": float(F.binary_cross_entropy(probabilities, data.labels.double())),
    }


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: FieldData, rows: Tensor
) -> float:
    """One step of the optimizer on the mean cross-entropy of some rows; returns the loss.

    A table's `penalty()` is part of the loss.

    Raises:
        FloatingPointError: the loss is not finite; the weights are left as they were.
    """
    loss = F.binary_cross_entropy_with_logits(model(data.ids[rows]), data.labels[rows])
    for module in model.modules():
        penalty: Any = getattr(module, "penalty", None)
        if penalty is not None:
            loss = loss + penalty()
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(
            f"training: the loss is {value}; a smaller learning rate may help, or the weights "
            "were not finite at the start"
        )
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return value


def split_tables(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of the embedding tables on which decay acts, and all others."""
    tables: dict[int, nn.Parameter] = {}
    for module in model.modules():
        if isinstance(module, VarEmbedding | VarEmbeddingBag):
            tables[id(module.weight)] = module.weight
        elif isinstance(module, StoredTable):
            tables |= {id(p): p for p in getattr(module, "decayed", module.parameters)()}
    others = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    return list(tables.values()), others


def make_adam(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Adam:
    """Adam whose weight decay acts on the tables only."""
    tables, others = split_tables(model)
    groups: list[dict[str, Any]] = [
        {"params": tables, "weight_decay": weight_decay},
        {"params": others},
    ]
    return torch.optim.Adam(groups, lr=lr, fused=True)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def shuffled_batches(num_rows: int, batch_size: int, generator: torch.Generator) -> list[Tensor]:
    """Row numbers of one epoch in batches of one size; a rest that fills no batch is left out."""
    size = min(batch_size, num_rows)
    order = torch.randperm(num_rows, generator=generator)
    return list(order[: num_rows - num_rows % size].split(size))


@contextmanager
def seeded_from(generator: torch.Generator) -> Iterator[None]:
    """torch's own randomness (dropout, first weights) drawn from our generator, then put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        yield


def show_progress(batches: list[Tensor], text: str, *, progress: bool) -> Iterator[Tensor]:
    """The batches, with a progress bar when `progress` is set."""
    with closing(make_bar(text, len(batches), progress=progress)) as bar:
        for batch in batches:
            yield batch
            if bar is not None:
                bar.update()


def train_model(
    model: nn.Module,
    train: FieldData,
    valid: FieldData,
    config: TrainConfig,
    *,
    progress: bool = True,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> TrainResult:
    """The model with the weights of the epoch that had the best validation AUC.

    Args:
        model: ids [B, F] -> logits [B]; changed in place.
        train, valid: rows to learn from, and rows that decide when to stop.
        config: how to train.
        progress: show a bar per epoch.
        checkpoint: file to write after every epoch.
        resume: continue from that file; the result is the one of an uninterrupted run.

    Raises:
        FloatingPointError: the loss is not finite.
        ValueError: the checkpoint is damaged or belongs to other options.

    Deterministic: yes, from config.seed.
    """
    optimizer = make_adam(model, config.lr, config.weight_decay)
    generator = torch.Generator().manual_seed(config.seed)
    sizes = [parameter.numel() for parameter in model.parameters()]
    identity = {**asdict(config), **identify_data(train, valid), "parameters": sizes}
    file = Checkpoint(checkpoint, identity)
    history: list[dict[str, Any]] = []
    best: dict[str, Tensor] = {}
    best_valid, bad, trained, before = {"auc": -math.inf}, 0, 0.0, 0.0
    state = file.load(resume=resume)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        generator.set_state(state["generator"])
        history, best, best_valid = state["history"], state["best"], state["best_valid"]
        bad, trained, before = state["bad"], state["trained"], state["seconds"]
        del state  # and with it a second copy of the weights
    start = time.perf_counter() - before
    for epoch in range(len(history) + 1, config.max_epochs + 1):
        if bad >= config.patience:
            break
        model.train()
        losses: list[float] = []
        began = time.perf_counter()
        batches = shuffled_batches(len(train.labels), config.batch_size, generator)
        with seeded_from(generator):
            for rows in show_progress(batches, f"train, epoch {epoch}", progress=progress):
                step = (epoch - 1) * len(batches) + len(losses)
                set_lr(optimizer, config.lr * (1 - step / (config.max_epochs * len(batches))))
                losses.append(train_step(model, optimizer, train, rows))
        trained += time.perf_counter() - began
        scores = evaluate(model, valid)
        bad += 1
        if scores["auc"] > best_valid["auc"]:
            bad, best_valid = 0, scores
            best = {name: value.clone() for name, value in model.state_dict().items()}
        mean = sum(losses) / len(losses)
        history.append({"phase": "train", "epoch": epoch, "train_loss": mean, "valid": scores})
        file.save({
            "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "generator": generator.get_state(), "history": history, "best": best,
            "best_valid": best_valid, "bad": bad, "trained": trained,
            "seconds": time.perf_counter() - start,
        })  # fmt: skip
    model.load_state_dict(best)
    seen = len(history) * (len(train.labels) // min(config.batch_size, len(train.labels)))
    rate = seen * min(config.batch_size, len(train.labels)) / max(trained, 1e-9)
    return TrainResult(model, optimizer, best_valid, history, time.perf_counter() - start, rate)


def train_table(
    make_model: MakeModel,
    make_table: MakeTable,
    train: FieldData,
    valid: FieldData,
    test: FieldData,
    config: TrainConfig,
    *,
    width: int,
    progress: bool = True,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> tuple[TrainResult, dict[str, Any]]:
    """A model trained around a table with new weights, and its measures on the test rows.

    Args:
        make_model: builds the model around the table of all fields.
        make_table: a VarEmbedding or StoredTable [B, F] -> [B, F, D]; called with config.seed.
        width: D, to say what full width takes.

    Returns:
        The trained model, and metrics, valid, params, params_full, bytes, seconds, rows_per_second
        and epochs as JSON values. Params and bytes are those of the table.
    """
    with seeded_from(torch.Generator().manual_seed(config.seed)):
        table = make_table()
        model = make_model(table)
    result = train_model(
        model, train, valid, config, progress=progress, checkpoint=checkpoint, resume=resume
    )
    return result, measure_trained(result, table, test, width)


def measure_trained(
    result: TrainResult, table: nn.Module, test: FieldData, width: int
) -> dict[str, Any]:
    """What `train_table` says of a trained model and the table inside it."""
    if isinstance(table, StoredTable):
        params, sizes = table.num_params, dict(table.num_bytes())
        sizes["optimizer"] = state_nbytes(result.optimizer, table.parameters())
    else:
        report = memory_report(table, result.optimizer)
        params, sizes = report.params, report.bytes
    return {
        "metrics": evaluate(result.model, test),
        "valid": result.valid,
        "params": params,
        "params_full": sum(test.cardinalities) * width,
        "bytes": {part: sizes[part] for part in ("weights", "index", "unify", "optimizer")},
        "seconds": result.seconds,
        "rows_per_second": result.rows_per_second,
        "epochs": len(result.history),
    }


def train_plan(
    make_model: MakeModel,
    plan: SizePlan,
    train: FieldData,
    valid: FieldData,
    test: FieldData,
    config: TrainConfig,
    *,
    unify: str = "linear",
    progress: bool = True,
    checkpoint: Path | None = None,
    resume: bool = False,
) -> tuple[TrainResult, dict[str, Any]]:
    """A model trained from new random weights on a jagged table, and its measures on the test rows.

    Args:
        make_model: builds the model around the table of all fields.
        plan: a table per field, in the order of the fields; one width D.
        unify: how rows reach D: "linear", or "pad", which at full width is a plain table (FDE).

    Returns:
        The trained model and its measures, as `train_table` returns them.

    Raises:
        ValueError: the plan's tables are not the fields of the data.
    """
    rows = {name: len(plan[name]) for name in plan}
    if list(rows.items()) != list(zip(train.field_names, train.cardinalities, strict=True)):
        raise ValueError(
            f"train_plan: the plan must have the tables "
            f"{dict(zip(train.field_names, train.cardinalities, strict=True))}, got {rows}"
        )
    width = max(plan.widths.values())

    def make_table() -> nn.Module:
        table = VarEmbedding.for_fields(train.cardinalities, width, plan, unify=unify)
        nn.init.normal_(table.weight, std=config.init_std)
        return table

    result, measured = train_table(
        make_model, make_table, train, valid, test, config,
        width=width, progress=progress, checkpoint=checkpoint, resume=resume,
    )  # fmt: skip
    return result, {**measured, "params": plan.num_params}
