"""OptEmbed: drop rows by a learnt threshold, then evolve one dim per field on a trained supernet.

F. Lyu et al., *OptEmbed: Learning Optimal Embedding Table for Click-through Rate Prediction*, CIKM
2022 (arXiv 2208.04482). Three stages:

1. A supernet is trained in which a row of field f counts only if it is large,
   e^ = 1[|e|_1 > t_f] e, with thresholds t learnt through a long-tailed estimate of the step's
   gradient (2 - 4|x| up to 0.4, then 0.4 up to 1, then 0) and the term alpha sum_f exp(-t_f) in the
   loss. Every example and field sees a random prefix of the row, of 1 to D numbers.
2. Evolution over the fields' dims: the fittest by validation AUC, with frozen weights, give the
   next generation by mutation and crossover.
3. The plan, the fittest dims and 0 for dropped rows, is trained from new weights.

DIFFERS: mutation changes copies. Editing the parents in place destroys the fittest.
DIFFERS: the cut of a crossover lies between two fields. Drawn from the width, as in the published
    code, it mostly leaves the child a copy of one parent.
DIFFERS: plain descent on t is 1000 times faster than the paper's 0.0001: on a million rows even
    100 times drops next to no row. alpha's default is the largest of the paper's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.plan import SizePlan
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.epochs import Epochs, gradient_step, logloss, open_checkpoint
from varemb.search.settings import check_exact, check_positive, check_rates, option
from varemb.search.training import evaluate, make_adam, seeded_from


@dataclass(frozen=True)
class OptEmbedConfig:
    """Settings of the search; the symbols are the paper's."""

    width: int = option(64, "D: numbers of a whole row")
    alpha: float = option(1e-4, "alpha: weight of sum exp(-t); larger drops more rows")
    t_init: float = option(0.0, "t: first thresholds, of a row's sum of |numbers|")
    t_lr: float = option(0.1, "learning rate of t")
    epochs: int = option(8, "epochs of the supernet")
    population: int = option(20, "plans of a generation, half by mutation, half by crossover")
    parents: int = option(15, "k: fittest plans that generations descend from")
    generations: int = option(30, "generations of the evolution")
    mutation: float = option(0.1, "chance that a mutation redraws a field's dim")
    batch_size: int = option(2048, "rows of a batch")
    lr: float = option(0.001, "learning rate of everything but t")
    weight_decay: float = option(1e-5, "L2 of the table")
    init_std: float = option(0.01, "of the table's first numbers")
    seed: int = option(0, "of all randomness")


class LongTailedStep(torch.autograd.Function):
    """1[x > 0], whose gradient is taken as 2 - 4|x| up to 0.4, 0.4 up to 1, and 0 beyond."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        size = x.abs()
        slope = torch.where(size <= 0.4, 2 - 4 * size, torch.where(size <= 1, 0.4, 0.0))
        return grad * slope


class MaskedTable(nn.Module):
    """A full table whose small rows are 0 and whose rows are cut. [B, F] -> [B, F, D]

    Args:
        cardinalities: rows of each field. [F]
        width: D.
        t_init: first thresholds.
        init_std: of the table's first numbers.

    Attributes:
        t: the fields' thresholds. Parameter [F]
        dims: where each field's rows are cut when not training; None leaves them whole. [F]
    """

    def __init__(
        self, cardinalities: Sequence[int], width: int, t_init: float, init_std: float
    ) -> None:
        super().__init__()
        self.cardinalities, self.width = tuple(cardinalities), width
        self.table = VarEmbedding.for_fields(list(cardinalities), width)
        nn.init.normal_(self.table.weight, std=init_std)
        self.t = nn.Parameter(torch.full((len(cardinalities),), float(t_init)))
        self.dims: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        e = self.table(ids)
        kept: Tensor = LongTailedStep.apply(e.abs().sum(2) - self.t)  # [B, F]
        dims = torch.randint(1, self.width + 1, ids.shape) if self.training else self.dims
        if dims is None:
            return e * kept[..., None]
        return e * kept[..., None] * (torch.arange(self.width) < dims[..., None])

    @torch.no_grad()
    def kept_rows(self) -> list[Tensor]:
        """Which rows of each field pass its threshold. F tensors [V_f] bool"""
        sizes = self.table.weight.view(-1, self.width).abs().sum(1)
        fields = sizes.split(list(self.cardinalities))
        return [size > t for size, t in zip(fields, self.t, strict=True)]


class OptEmbed:
    """OptEmbed (F. Lyu et al., CIKM 2022): rows dropped by a threshold, a dim per field evolved.

    Args:
        config: its settings.

    Example:
        >>> OptEmbed(OptEmbedConfig(width=16)).config.generations
        30
    """

    def __init__(self, config: OptEmbedConfig) -> None:
        self.config = config

    def fit(
        self,
        make_model: MakeModel,
        train: FieldData,
        valid: FieldData,
        *,
        progress: bool = True,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
    ) -> SearchResult:
        """One dim per field, and 0 for the rows below its threshold.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows for the supernet.
            valid: rows that judge the dims.
            progress: show a bar per epoch.
            checkpoint_dir: folder of optembed.safetensors, written after every epoch and
                generation.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            The plan, and the AUC of the supernet cut to it.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.

        Deterministic: yes, from config.seed.
        """
        check_optembed(self.config)
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        with seeded_from(generator):
            table = MaskedTable(train.cardinalities, config.width, config.t_init, config.init_std)
            model = make_model(table)
        adam = make_adam(model, config.lr, config.weight_decay)
        for group in adam.param_groups:
            group["params"] = [p for p in group["params"] if p is not table.t]
        sgd = torch.optim.SGD([table.t], config.t_lr)
        run = Epochs(model, [adam, sgd], generator)

        def run_epoch(epoch: int) -> dict[str, Any]:
            if epoch <= config.epochs:
                return _train(run, table, config, train, valid, epoch, progress=progress)
            return _evolve(run, table, config, valid, epoch - config.epochs)

        file = open_checkpoint(checkpoint_dir, "optembed", config, train, valid)
        run.run(run_epoch, config.epochs + config.generations, file, resume)
        auc, dims = run.kept["fittest"][0]
        rows = zip(train.field_names, table.kept_rows(), dims, strict=True)
        plan = SizePlan({name: kept * dim for name, kept, dim in rows}, config.width)
        return SearchResult(plan, auc, run.history, run.seconds, unify="pad")


def _train(
    run: Epochs,
    table: MaskedTable,
    config: OptEmbedConfig,
    train: FieldData,
    valid: FieldData,
    epoch: int,
    *,
    progress: bool,
) -> dict[str, Any]:
    """Stage 1: one epoch of the supernet."""
    losses = []
    run.model.train()
    text = f"supernet, epoch {epoch}"
    for rows in run.batches(train, config.batch_size, text, progress=progress):
        loss = logloss(run.model, train, rows) + config.alpha * torch.exp(-table.t).sum()
        losses.append(gradient_step(loss, run.optimizers))
    return {
        "phase": "supernet",
        "epoch": epoch,
        "train_loss": sum(losses) / len(losses),
        "valid": evaluate(run.model, valid),
        "thresholds": table.t.tolist(),
        "kept_rows": [int(kept.sum()) for kept in table.kept_rows()],
    }


def _evolve(
    run: Epochs, table: MaskedTable, config: OptEmbedConfig, valid: FieldData, generation: int
) -> dict[str, Any]:
    """Stage 2: judges one generation and makes the next one of the fittest so far."""
    shape = (config.population, len(table.cardinalities))
    if generation == 1:
        run.kept |= {
            "population": torch.randint(1, config.width + 1, shape).tolist(), "fittest": [],
        }  # fmt: skip
    fittest: list[tuple[float, list[int]]] = run.kept["fittest"]
    for dims in run.kept["population"]:
        if all(dims != known for _, known in fittest):
            table.dims = torch.tensor(dims)
            fittest.append((evaluate(run.model, valid)["auc"], dims))
    table.dims = None
    fittest.sort(key=lambda judged: -judged[0])
    del fittest[config.parents :]
    parents = [dims for _, dims in fittest]
    num_mutated = config.population // 2
    run.kept["population"] = [mutate(parents, config) for _ in range(num_mutated)] + [
        cross(parents) for _ in range(config.population - num_mutated)
    ]
    auc, dims = fittest[0]
    return {"phase": "evolution", "epoch": generation, "valid": {"auc": auc}, "dims": list(dims)}


def mutate(parents: list[list[int]], config: OptEmbedConfig) -> list[int]:
    """A copy of a parent in which some fields' dims are drawn anew."""
    child = list(parents[int(torch.randint(len(parents), ()))])
    for f in range(len(child)):
        if torch.rand(()) < config.mutation:
            child[f] = int(torch.randint(1, config.width + 1, ()))
    return child


def cross(parents: list[list[int]]) -> list[int]:
    """The first fields of one parent, the last ones of another."""
    first, second = torch.randint(len(parents), (2,)).tolist()
    cut = int(torch.randint(1, max(len(parents[0]), 2), ()))
    return parents[first][:cut] + parents[second][cut:]


def check_optembed(config: OptEmbedConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive(
        "OptEmbed", config, "width", "epochs", "population", "parents", "generations", "batch_size"
    )
    check_exact("OptEmbed", config.width)
    check_rates("OptEmbed", config)
    if not 0 <= config.mutation <= 1:
        raise ValueError(f"OptEmbed: mutation must be in [0, 1], got {config.mutation}")
