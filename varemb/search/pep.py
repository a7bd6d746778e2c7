"""PEP: thresholds that are learnt with the table cut its numbers, one by one.

S. Liu et al., *Learnable Embedding Sizes for Recommender Systems*, ICLR 2021 (arXiv 2101.07577).
The table is trained through a soft threshold (Eq. 5 and 6),

    e^ = sign(e) relu(|e| - sigmoid(s))

with logits s learnt with everything else. The first time that no more than the target share of
numbers is left, the mask 1[e^ != 0] is kept, and the model is trained again from the same first
numbers of the table under the mask, without thresholds (Section 3.3). The mask is irregular: the
trained table is stored as compressed sparse rows (`search/csr.py`).

DIFFERS: s has its own learning rate, by default one at which it could rise to 0 in half the planned
    steps. Adam moves s by about its rate a step: from -15, where sigmoid(s) is 3e-7, the paper's
    0.001 takes ten thousand steps to the size of an embedding number, more than small data has.
    What moves it up is its L2 (`s_weight_decay`), which Adam scales like any gradient: without it
    the thresholds stay where they are and nothing is pruned.
DIFFERS: the table's first numbers are normal with `init_std`, as in every method here, not Xavier.
DIFFERS: a step may leave fewer numbers than the target; the mask is taken as it is then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from varemb.nn import VarEmbedding
from varemb.ops import field_rows
from varemb.search.base import FieldData, MakeModel, SearchResult
from varemb.search.csr import CsrTable
from varemb.search.epochs import Epochs, first_rows, gradient_step, logloss, open_checkpoint
from varemb.search.settings import check_exact, check_positive, check_rates, check_share, option
from varemb.search.training import evaluate, make_adam, seeded_from

# What shares a threshold: does each row, each column have its own, or each field?
GRANULARITIES = ("global", "dimension", "row", "row-dimension", "field", "field-dimension")


@dataclass(frozen=True)
class PEPConfig:
    """Settings of the pruning; the symbols are the paper's."""

    width: int = option(32, "D: numbers of a row before pruning")
    target: float = option(0.3, "share of the numbers to keep, at most")
    granularity: str = option("row-dimension", "what has a threshold: " + ", ".join(GRANULARITIES))
    s_init: float = option(-15.0, "s: first logit of the thresholds")
    s_lr: float = option(0.0, "learning rate of s; 0: s can rise to 0 in half the planned steps")
    s_weight_decay: float = option(1e-5, "L2 of s; it moves s up, towards 0")
    max_epochs: int = option(20, "epochs within which the target must be reached")
    batch_size: int = option(1024, "rows of a batch")
    lr: float = option(0.001, "learning rate of everything else")
    weight_decay: float = option(1e-5, "L2 of the table")
    clip: float = option(100.0, "largest norm of the gradient")
    init_std: float = option(0.01, "of the table's first numbers")
    is_reset: bool = option(False, "train the mask from other first numbers")
    seed: int = option(0, "of all randomness")


class ThresholdTable(nn.Module):
    """A full table behind a soft threshold. [B, F] -> [B, F, D]

    Args:
        cardinalities: rows of each field. [F]
        width: D.
        granularity: one of GRANULARITIES.
        s_init: first logit.
        init_std: of the table's first numbers.

    Attributes:
        s: the logits. [1 or F or N, 1 or D]
    """

    field_of: Tensor
    starts: Tensor

    def __init__(
        self,
        cardinalities: Sequence[int],
        width: int,
        granularity: str,
        s_init: float,
        init_std: float,
    ) -> None:
        super().__init__()
        self.table = VarEmbedding.for_fields(list(cardinalities), width)
        nn.init.normal_(self.table.weight, std=init_std)
        lines = {"row": sum(cardinalities), "field": len(cardinalities)}
        of, _, per_dimension = granularity.partition("-")
        columns = width if per_dimension or of == "dimension" else 1
        self.granularity, self.width = of, width
        self.s = nn.Parameter(torch.full((lines.get(of, 1), columns), float(s_init)))
        fields = torch.arange(len(cardinalities)).repeat_interleave(torch.tensor(cardinalities))
        self.register_buffer("field_of", fields, persistent=False)
        self.register_buffer("starts", first_rows(cardinalities), persistent=False)

    def thresholds(self, rows: Tensor) -> Tensor:
        """sigmoid(s) of the given rows. [*] -> [*, 1 or D]"""
        line = {"row": rows, "field": self.field_of[rows]}.get(
            self.granularity, torch.zeros_like(rows)
        )
        return torch.sigmoid(self.s)[line]

    def forward(self, ids: Tensor) -> Tensor:  # [B, F] -> [B, F, D]
        return soft_threshold(self.table(ids), self.thresholds(field_rows(ids, self.starts)))

    @torch.no_grad()
    def mask(self) -> Tensor:
        """Which numbers are not 0. [N, D] bool"""
        dense = self.table.weight.view(-1, self.width)
        return dense.abs() > self.thresholds(torch.arange(len(dense)))


def soft_threshold(e: Tensor, threshold: Tensor) -> Tensor:
    """Eq. 5: sign(e) relu(|e| - threshold).

    Example:
        >>> soft_threshold(torch.tensor([-3.0, 0.5, 2.0]), torch.tensor(1.0))
        tensor([-2.,  0.,  1.])
    """
    return torch.sign(e) * torch.relu(e.abs() - threshold)


class PEP:
    """PEP (S. Liu et al., ICLR 2021): learnt thresholds cut the table's numbers, one by one.

    Args:
        config: its settings.

    Example:
        >>> PEP(PEPConfig(target=0.1)).config.granularity
        'row-dimension'
    """

    def __init__(self, config: PEPConfig) -> None:
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
        """A mask that keeps at most the target share of the table's numbers.

        Args:
            make_model: builds a model around an embedding [B, F] -> [B, F, D].
            train: rows to learn from.
            valid: rows that score the pruned model.
            progress: show a bar per epoch.
            checkpoint_dir: folder of pep.safetensors, written after every epoch.
            resume: continue from it; the result is the one of an uninterrupted run.

        Returns:
            `make_table`, which gives the masked table with its first numbers, as CSR.

        Raises:
            ValueError: settings that do not fit, or a damaged or foreign checkpoint.
            FloatingPointError: the loss is not finite.
            RuntimeError: the target is not reached within the epochs.

        Deterministic: yes, from config.seed.
        """
        check_pep(self.config)
        config, generator = self.config, torch.Generator().manual_seed(self.config.seed)
        with seeded_from(generator):
            table = ThresholdTable(
                train.cardinalities, config.width, config.granularity, config.s_init,
                config.init_std,
            )  # fmt: skip
            model = make_model(table)
        first = table.table.weight.detach().clone().view(-1, config.width)  # [N, D]
        optimizers = _make_optimizers(model, table, config, len(train.labels))
        run = Epochs(model, optimizers, generator)

        def run_epoch(epoch: int) -> dict[str, Any]:
            return _prune(run, table, config, train, valid, epoch, progress=progress)

        file = open_checkpoint(checkpoint_dir, "pep", config, train, valid)
        run.run(run_epoch, config.max_epochs, file, resume)
        mask = table.mask()
        if not run.kept.get("is_done"):
            raise RuntimeError(
                f"PEP: {float(mask.float().mean()):.3f} of the numbers are left after "
                f"{config.max_epochs} epochs, target {config.target}; raise max_epochs or s_lr"
            )

        def make_table() -> nn.Module:
            values = torch.randn_like(first) * config.init_std if config.is_reset else first
            return CsrTable(train.cardinalities, values, mask)

        return SearchResult(
            None, run.history[-1]["valid"]["auc"], run.history, run.seconds, make_table=make_table
        )


def _make_optimizers(
    model: nn.Module, table: ThresholdTable, config: PEPConfig, num_rows: int
) -> list[torch.optim.Optimizer]:
    """Adam, with a group for the thresholds."""
    adam = make_adam(model, config.lr, config.weight_decay)
    for group in adam.param_groups:
        group["params"] = [p for p in group["params"] if p is not table.s]
    steps = config.max_epochs * (num_rows // min(config.batch_size, num_rows))
    s_lr = config.s_lr or max(-config.s_init, 1.0) / (steps / 2)
    adam.add_param_group({
        "params": [table.s], "lr": s_lr, "weight_decay": config.s_weight_decay,
    })  # fmt: skip
    return [adam]


def _prune(
    run: Epochs,
    table: ThresholdTable,
    config: PEPConfig,
    train: FieldData,
    valid: FieldData,
    epoch: int,
    *,
    progress: bool,
) -> dict[str, Any]:
    """One epoch, which ends where the target is reached."""
    allowed = int(config.target * table.table.weight.numel())
    losses, left = [], 0
    run.model.train()
    for rows in run.batches(train, config.batch_size, f"prune, epoch {epoch}", progress=progress):
        losses.append(gradient_step(logloss(run.model, train, rows), run.optimizers, config.clip))
        left = int(table.mask().sum())
        if left <= allowed:
            run.kept["is_done"] = True
            break
    return {
        "phase": "prune",
        "epoch": epoch,
        "train_loss": sum(losses) / len(losses),
        "valid": evaluate(run.model, valid),
        "params": left,
    }


def check_pep(config: PEPConfig) -> None:
    """Raises ValueError for settings that do not fit."""
    check_positive("PEP", config, "width", "max_epochs", "batch_size")
    check_exact("PEP", config.width)
    check_share("PEP", config, "target")
    check_rates("PEP", config)
    if config.granularity not in GRANULARITIES:
        raise ValueError(
            f"PEP: granularity must be {', '.join(GRANULARITIES)}, got {config.granularity!r}"
        )
